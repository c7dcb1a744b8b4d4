"""Random controls are matched per feature, or listed as unmatched."""

from __future__ import annotations

from operator import mul

import pytest
import torch

from tests.builders import tiny_hosted
from trephine.domain.ablation import MatchedControls
from trephine.domain.sites import FeatureRef
from trephine.engine.edits.controls import contribution_norms, draw_controls
from trephine.engine.edits.effects import p_value
from trephine.engine.models.neurons import decoder_norms, neuron_site
from trephine.engine.models.quanta import finish
from trephine.engine.runs.retain import retain_text
from trephine.engine.runs.rows import RowInput, run_rows


def feature(layer, index):
    return FeatureRef(layer=layer, index=index)


@pytest.fixture
def norms():
    """Two layers of fifty neurons; in layer 1 neuron 0 has no peer, neuron 1 exactly three."""
    table = torch.linspace(1.0, 3.0, 50).repeat(2, 1)
    table[1, 0], table[1, 1:5] = 100.0, 10.0
    return {("neurons", layer): row for layer, row in enumerate(table)}


def test_every_stand_in_is_of_the_same_layer_and_of_similar_norm(norms):
    """Layer equal, norm within the factor, none of the intervened features, in all 99 sets."""
    features = (feature(0, 10), feature(0, 40), feature(1, 20))
    draws = draw_controls(norms, features, MatchedControls(norm_factor=1.5))
    assert len(draws.sets) == 99
    for drawn in draws.sets:
        for own, other in zip(draws.matched, drawn, strict=True):
            assert other.layer == own.layer
            ours, theirs = (norms["neurons", f.layer][f.index] for f in (own, other))
            assert 1 / 1.5 <= theirs / ours <= 1.5
        assert not set(drawn) & set(features)
        assert len(set(drawn)) == len(drawn)
    assert len({frozenset(drawn) for drawn in draws.sets}) == 99


def test_a_feature_without_peers_is_listed_and_not_matched_badly(norms):
    """The others keep their controls; the lonely one has none."""
    draws = draw_controls(norms, (feature(1, 0), feature(0, 10)), MatchedControls())
    assert draws.matched == (feature(0, 10),)
    assert [(u.feature, u.candidates) for u in draws.unmatched] == [(feature(1, 0), 0)]
    assert all(len(drawn) == 1 for drawn in draws.sets)


def test_few_peers_give_few_sets_instead_of_repeated_ones(norms):
    """As many candidates are as many controls: repeating them would sharpen the p-value for nothing."""
    norms["neurons", 1][1:24] = 10.0
    draws = draw_controls(norms, (feature(1, 1),), MatchedControls())
    assert sorted(drawn[0].index for drawn in draws.sets) == list(range(2, 24))
    (found,) = draws.found
    assert (found.candidates, found.factor, found.written) == (22, 2.0, None)


def test_fewer_than_twenty_candidates_are_too_few(norms):
    """Even within the double of the factor: 3 that write as much, and 12 that write a quarter or more."""
    draws = draw_controls(norms, (feature(1, 1),), MatchedControls())
    assert draws.sets == ()
    (lost,) = draws.unmatched
    assert lost.candidates == 3 + int((norms["neurons", 1] >= 2.5).sum()) - 5


def test_a_factor_that_holds_too_few_is_widened_for_that_feature(norms):
    """The other keeps its own; which factor it was is told."""
    norms["neurons", 1][1:5] = 5.5
    draws = draw_controls(norms, (feature(0, 25), feature(1, 1)), MatchedControls())
    assert [one.factor for one in draws.found] == [2.0, 3.0]
    assert all(norms["neurons", 1][drawn[1].index] >= 5.5 / 3 for drawn in draws.sets)
    assert any(norms["neurons", 1][drawn[1].index] < 5.5 / 2 for drawn in draws.sets)


def test_features_that_compete_for_too_few_peers_are_listed(norms):
    """Of three features with twenty free candidates only one is matched, since others would be combined."""
    table = torch.full((50,), 100.0)
    table[1:24] = 1.0
    draws = draw_controls({("neurons", 1): table}, tuple(feature(1, i) for i in (1, 2, 3)), MatchedControls())
    assert len(draws.matched) == 1
    assert [one.candidates for one in draws.unmatched] == [20, 20]
    assert sorted(drawn[0].index for drawn in draws.sets) == list(range(4, 24))


def test_stand_ins_go_so_far_that_they_write_as_much():
    """However much less they would write by themselves; how much it would be is told."""
    written = torch.linspace(0.5, 1.0, 60)
    own = feature(0, 59)
    draws = draw_controls({}, (own,), MatchedControls(), {own: written})
    for (other,), (strength,) in zip(draws.sets, draws.strengths, strict=True):
        assert strength * float(written[other.index]) == pytest.approx(1.0)
    assert draws.found[0].written == pytest.approx(float(written[:59].median()), abs=0.01)


@pytest.mark.parametrize("count", [1, 4])
def test_strong_features_are_no_more_significant_than_others(count):
    """Where an effect is what is written times chance, p is 0.05 or less in some 5 % of draws.

    Of the five strongest of a layer nearly all candidates write less: unscaled it is more than a tenth.
    """
    source = torch.Generator().manual_seed(0)
    scaled = unscaled = 0
    for seed in range(300):
        layers = {layer: torch.randn(400, generator=source).exp() for layer in range(count)}
        chance = torch.randn(count, 400, generator=source).tolist()
        strongest = [int(layers[layer].argsort()[-1 - seed % 5]) for layer in range(count)]
        own = tuple(feature(layer, index) for layer, index in enumerate(strongest))
        written = {one: layers[one.layer] for one in own}
        draws = draw_controls({}, own, MatchedControls(sets=39, seed=seed), written)
        each = [
            [float(written_of(layers, one)) * chance[one.layer][one.index] for one in drawn]
            for drawn in draws.sets
        ]
        effect = sum(float(written_of(layers, one)) * chance[one.layer][one.index] for one in draws.matched)
        moved = [sum(map(mul, one, far)) for one, far in zip(each, draws.strengths, strict=True)]
        scaled += p_value(effect, moved) <= 0.05
        unscaled += p_value(effect, [sum(one) for one in each]) <= 0.05
    assert scaled <= 0.08 * 300  # 0.05, and 2.4 standard errors
    assert unscaled > 0.1 * 300


def written_of(layers, one):
    return layers[one.layer][one.index]


def test_a_neuron_that_never_fires_has_no_match(norms):
    """A norm of 0 has no factor-of-2 neighbourhood."""
    norms["neurons", 0][3] = 0.0
    draws = draw_controls(norms, (feature(0, 3),), MatchedControls())
    assert draws.matched == ()
    assert draws.sets == ()
    assert draws.unmatched[0].candidates == 0


def test_the_seed_decides(norms):
    """Same seed, same sets (law 9); another seed, other sets."""
    draws = [draw_controls(norms, (feature(0, 25),) * 1, MatchedControls(sets=9, seed=s)) for s in (4, 4, 5)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_contribution_is_rms_activation_times_decoder_norm(family):
    """Position 0 of every window is left out."""
    hosted = tiny_hosted(family)
    retain = retain_text(hosted, "The store gave a drink to the dog and went to Paris. " * 12)
    assert len(retain.windows) > 1
    norms = finish(contribution_norms(hosted, retain))
    seen = [
        run_rows(hosted, [RowInput(w)], reads=[neuron_site(1)]).values[0][neuron_site(1)][1:]
        for w in retain.windows
    ]
    expected = torch.cat(seen).double().pow(2).mean(0).sqrt() * decoder_norms(hosted.architecture, 1)
    torch.testing.assert_close(norms[1], expected.float())
    assert norms.shape == (3, 64)
