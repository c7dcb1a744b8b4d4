"""Random controls are matched per feature, or listed as unmatched."""

from __future__ import annotations

import pytest
import torch

from tests.builders import tiny_hosted
from trephine.domain.ablation import MatchedControls
from trephine.domain.sites import FeatureRef
from trephine.engine.edits.controls import contribution_norms, draw_controls
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
    """Three candidates are three different controls: repeating them would sharpen the p-value for nothing."""
    draws = draw_controls(norms, (feature(1, 1),), MatchedControls())
    assert sorted(drawn[0].index for drawn in draws.sets) == [2, 3, 4]


def test_features_that_compete_for_too_few_peers_are_listed(norms):
    """Of three features with one free candidate only one is matched."""
    draws = draw_controls(norms, tuple(feature(1, i) for i in (1, 2, 3)), MatchedControls())
    assert len(draws.matched) == 1
    assert len(draws.unmatched) == 2
    assert draws.sets == ((feature(1, 4),),)


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
