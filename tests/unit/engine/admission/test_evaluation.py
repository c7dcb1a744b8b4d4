"""Evaluating a set: exact where the answer is known, seeded, and honest about controls."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.builders import tiny_hosted
from tests.replacement_sets import random_text, write_saes, write_transcoders
from tests.unit.engine.replacements.fakes import layer_info, random_layer
from trephine.domain.errors import BrokenCorpusError, InvalidRequestError, ReplacementNotFoundError
from trephine.domain.replacements import (
    Dictionary,
    EvaluateReplacementSet,
    LayerKind,
    LoadReplacementSet,
    ReplacementSource,
)
from trephine.domain.sites import NEURONS, Site, SiteKind
from trephine.engine.admission.evaluation import evaluate_replacement_set, measure
from trephine.engine.admission.loading import load_replacement_set
from trephine.engine.admission.measurement import ALL
from trephine.engine.admission.perturbation import by_depth, perturb
from trephine.engine.admission.splice import LayerSource, loaded_source, run_context, run_spliced
from trephine.engine.admission.verdicts import Verdicts
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session

CONTROLS = (Dictionary.RANDOM, Dictionary.FROZEN_DECODER, Dictionary.FROZEN_ENCODER)


@pytest.fixture(scope="module")
def hosted():
    return tiny_hosted("llama")


@pytest.fixture(scope="module")
def contexts(hosted):
    rows = random_text(hosted, rows=12, length=24, seed=11)
    return [tuple(row) for row in rows.tolist()]


def source_of(layers):
    found = {layer.info.layer: layer for layer in layers}

    @contextmanager
    def opener(wanted):
        yield {layer: found[layer] for layer in wanted}

    return LayerSource(infos=tuple(layer.info for layer in layers), open=opener)


def verdicts(hosted, source, contexts):
    measured = finish(measure(hosted, {Dictionary.GIVEN: source}, contexts, alone=()))
    return Verdicts(measured, source, samples=200, seed=0), measured


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_a_perfect_dictionary_scores_1(family, contexts):
    """The model's own neurons: FVU 0, CE and KL scores 1, every first choice the same, no error."""
    hosted = tiny_hosted(family)
    found, _ = verdicts(hosted, loaded_source(hosted, NEURONS, range(3)), contexts)
    (spliced,) = found.spliced(())
    assert spliced.ce_score.value == pytest.approx(1.0, abs=1e-4)
    assert spliced.kl_score.value == pytest.approx(1.0, abs=1e-4)
    assert spliced.kl_score_zero.value == pytest.approx(1.0, abs=1e-4)
    assert spliced.top1_agreement.value == 1.0
    assert spliced.error_share.value < 1e-5
    assert spliced.fvu.value < 1e-8
    assert spliced.l0.value == hosted.architecture.d_mlp
    assert spliced.dead_share == 0.0
    for layer in found.layers((), range(3)):
        assert layer.fvu.value < 1e-10
        assert layer.kl_score.value == pytest.approx(1.0, abs=1e-4)
        assert layer.kl_score_zero.value == pytest.approx(1.0, abs=1e-4)
        assert layer.l0.value == hosted.architecture.d_mlp


def test_a_zeroed_decoder_is_zero_ablation(hosted, contexts):
    """It writes zeros, so it scores 0 against zero-ablation and its run is that ablation's."""
    layers = [random_layer(layer_info(layer)) for layer in range(3)]
    for layer in layers:
        layer.W_dec = {site: torch.zeros_like(W) for site, W in layer.W_dec.items()}
        layer.b_dec = {site: torch.zeros_like(b) for site, b in layer.b_dec.items()}
    found, measured = verdicts(hosted, source_of(layers), contexts)
    (spliced,) = found.spliced(())
    assert spliced.ce_spliced.value == pytest.approx(spliced.ce_zero_ablated.value, abs=1e-6)
    assert spliced.error_share.value == 1.0
    # Layer 0 reads the same on both runs, the others what zeros have made of the stream.
    plain = found.layers((), range(3))
    assert spliced.layers[0].l0 == plain[0].l0
    assert spliced.layers[0].dead_share == plain[0].dead_share
    assert spliced.layers[2].l0.value != plain[2].l0.value
    assert [row.fvu.value for row in spliced.layers] == pytest.approx([row.fvu.value for row in plain])
    assert spliced.fvu.value == pytest.approx(sum(row.fvu.value for row in plain) / 3)
    assert spliced.l0.value == pytest.approx(sum(row.l0.value for row in spliced.layers) / 3)
    assert spliced.ce_score_zero.value == pytest.approx(0.0, abs=1e-5)
    assert spliced.kl_score_zero.value == pytest.approx(0.0, abs=1e-5)
    for layer in found.layers((), range(3)):
        assert layer.kl_score_zero.value == pytest.approx(0.0, abs=1e-5)
        assert layer.fvu.value >= 1.0
    assert torch.allclose(measured.kl(("given", 1)).numerator, measured.kl(("zero", 1)).numerator, atol=1e-6)


def test_a_decoder_that_writes_the_mean_is_mean_ablation(hosted, contexts):
    """FVU is 1 and the CE score 0: what the figures are normalised by."""
    layers = [random_layer(layer_info(layer)) for layer in range(3)]
    _, measured = verdicts(hosted, source_of(layers), contexts)
    for layer in layers:
        layer.W_dec = {site: torch.zeros_like(W) for site, W in layer.W_dec.items()}
        layer.b_dec = {site: measured.moments[site].mean.float() for site in layer.b_dec}
    found, _ = verdicts(hosted, source_of(layers), contexts)
    for layer in found.layers((), range(3)):
        assert layer.fvu.value == pytest.approx(1.0, abs=1e-5)
        assert layer.kl_score.value == pytest.approx(0.0, abs=1e-4)


def test_a_token_weighs_alike_in_every_context(hosted, contexts):
    """Cross-entropy, KL and first choices are means over positions, and intervals of ratios of such sums."""
    mixed = [contexts[0], contexts[1], contexts[2][:6], contexts[3][:9]]
    layers = [random_layer(layer_info(layer)) for layer in range(3)]
    found, measured = verdicts(hosted, source_of(layers), mixed)
    (spliced,) = found.spliced(())
    losses, kl, same = [], [], []
    source = source_of(layers)
    for ids in mixed:
        plain, values = run_context(hosted, ids, {}, reads=source.sites)
        other = run_spliced(hosted, ids, source, values)
        p, q = (logits.double().log_softmax(-1)[1:-1] for logits in (plain, other))
        losses.append(-p.gather(1, torch.tensor(ids[2:])[:, None])[:, 0])
        kl.append((p.exp() * (p - q)).sum(-1))
        same.append((p.argmax(-1) == q.argmax(-1)).double())
    assert [len(of) for of in losses] == [22, 22, 4, 7]
    assert spliced.ce_plain.value == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)
    assert spliced.kl.value == pytest.approx(float(torch.cat(kl).mean()), rel=1e-3)
    assert spliced.top1_agreement.value == pytest.approx(float(torch.cat(same).mean()), abs=1e-9)
    zero = measured.kl(("zero", ALL)).value
    assert spliced.kl_score_zero.value == pytest.approx(1 - spliced.kl.value / zero, rel=1e-6)
    ablated, plain_ce = spliced.ce_mean_ablated.value, spliced.ce_plain.value
    score = (ablated - spliced.ce_spliced.value) / (ablated - plain_ce)
    assert spliced.ce_score.value == pytest.approx(score, rel=1e-6)
    longest = max(float(of.mean()) for of in losses)
    assert min(float(of.mean()) for of in losses) <= spliced.ce_plain.low < spliced.ce_plain.high <= longest


def test_controls_that_are_of_another_size_are_told_of(hosted, contexts):
    """Beyond a tenth of the set's L0, with the layer where they are furthest apart."""
    given, other = (source_of([random_layer(layer_info(layer)) for layer in range(3)]) for _ in range(2))
    sources = {Dictionary.GIVEN: given, Dictionary.RANDOM: other}
    measured = finish(measure(hosted, sources, contexts, alone=()))
    found = Verdicts(measured, given, samples=50, seed=0)
    assert list(found.sizes([Dictionary.RANDOM])) == []
    counts = measured.counts["random", 1]
    counts.active = [1.25 * active for active in counts.active]
    (said,) = found.sizes([Dictionary.RANDOM])
    assert "random control is more than 10% from the set's" in said
    assert "in 1 of 3 layers, furthest in layer 1 (+25%)" in said


def test_cross_layer_transcoders_are_measured_on_their_sums(hosted, contexts):
    """All layers spliced and each alone run through; a layer's own output holds what others write there."""
    layers = [
        random_layer(
            layer_info(
                layer,
                kind=LayerKind.CROSS_LAYER_TRANSCODER,
                sites_out=tuple(Site(kind=SiteKind.MLP_OUT, layer=to) for to in range(layer, 3)),
            )
        )
        for layer in range(3)
    ]
    found, _ = verdicts(hosted, source_of(layers), contexts)
    alone, _ = verdicts(hosted, source_of(layers[2:]), contexts)
    assert len(found.spliced(())) == 1
    assert found.layers((), [2])[0].fvu.value != pytest.approx(alone.layers((), [2])[0].fvu.value)
    pairs = finish(perturb(hosted, {Dictionary.GIVEN: source_of(layers)}, contexts, count=4, seed=0))
    assert pairs
    assert all(-1.0001 <= pair.cosine <= 1.0001 for pair in pairs)


def test_the_replacement_model_of_a_perfect_dictionary_moves_as_the_model(hosted, contexts):
    """Cosine 1 and NMSE 0 at every depth; a random dictionary's answers are others."""
    wrong = source_of([random_layer(layer_info(layer)) for layer in range(3)])
    sources = {Dictionary.GIVEN: loaded_source(hosted, NEURONS, range(3)), Dictionary.RANDOM: wrong}
    found = by_depth(finish(perturb(hosted, sources, contexts, count=6, seed=0)), samples=100, seed=0)
    assert [(each.depth, each.dictionary) for each in found] == [(d, one) for d in (1, 2) for one in sources]
    for each in found[::2]:
        assert each.cosine.value == pytest.approx(1.0, abs=1e-3)
        assert each.nmse.value < 1e-3
    assert all(other.nmse.value > 0.01 for other in found[1::2])
    assert [each.pairs for each in found[::2]] == [other.pairs for other in found[1::2]]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """A fitted set with a small budget, loaded beside a tiny model."""
    session = Session(hosted=tiny_hosted("llama"))
    folder = write_transcoders(session.hosted, tmp_path_factory.mktemp("set"))
    source = ReplacementSource(name="tc", folder=str(folder), memory_budget_bytes=30_000)
    finish(load_replacement_set(session, LoadReplacementSet(source=source)))
    return session


def text_of(hosted, rows=24):
    return hosted.decode(random_text(hosted, rows=rows, length=32, seed=5).flatten().tolist())


def command(session, **changes: Any):
    given = EvaluateReplacementSet(
        name="tc",
        text=text_of(session.hosted),
        text_name="made up",
        context_tokens=32,
        max_contexts=10,
        bootstrap=100,
        perturbations=4,
    )
    return replace(given, **changes)


@pytest.fixture(scope="module")
def evaluated(session):
    return finish(evaluate_replacement_set(session, command(session)))


def test_every_figure_stands_beside_its_controls(evaluated):
    """Four dictionaries per layer and four spliced; equal size; L0 within a third of the set's."""
    assert [score.dictionary for score in evaluated.layers[:4]] == [Dictionary.GIVEN, *CONTROLS]
    assert len(evaluated.layers) == 3 * 4
    assert [score.dictionary for score in evaluated.spliced] == [Dictionary.GIVEN, *CONTROLS]
    for layer in range(3):
        given, *controls = (score for score in evaluated.layers if score.layer == layer)
        assert given.fvu.value < 1
        assert 0 < given.error_share.value < 1
        for control in controls:
            assert control.l0.value == pytest.approx(given.l0.value, rel=0.35)
            assert math.isfinite(control.ce_score.value)
            assert 0 < control.error_share.value < 1
        random = next(score for score in controls if score.dictionary is Dictionary.RANDOM)
        assert random.fvu.value > given.fvu.value
    assert (evaluated.tokens, evaluated.contexts, evaluated.seed) == (320, 10, 0)
    assert evaluated.text.startswith("made up (sha256 ")
    assert [row.dictionary for row in evaluated.depths[:4]] == [Dictionary.GIVEN, *CONTROLS]
    assert all(row.pairs > 0 for row in evaluated.depths)
    of_perturbations = [claim.control for claim in evaluated.claims if claim.figure == "perturbations, nmse"]
    assert of_perturbations == list(CONTROLS)


def test_claims_are_paired_and_what_is_lost_is_said(evaluated):
    """The set, itself a frozen encoder, beats random ones on FVU; every lost claim is in a caveat."""
    against = {(claim.figure, claim.control): claim for claim in evaluated.claims}
    assert against["layer 0, fvu", Dictionary.RANDOM].beats
    for claim in evaluated.claims:
        if claim.difference.low is not None:
            assert claim.beats == (claim.difference.low > 0)
    for control in CONTROLS:
        lost = [claim for claim in evaluated.claims if claim.control is control and not claim.beats]
        said = [caveat for caveat in evaluated.caveats if f"the {control.value} control" in caveat]
        assert bool(lost) == bool(said)
    assert any("position 0" in caveat for caveat in evaluated.caveats)
    assert any("controls are fitted on" in caveat for caveat in evaluated.caveats)


def test_everything_better_or_worse_is_claimed(evaluated):
    """Per layer, spliced and under perturbation; L0 and dead share are sizes, not merits."""
    scores = ("ce_score", "ce_score_zero", "kl_score", "kl_score_zero", "top1_agreement")
    wanted = {f"layer {layer}, {name}" for layer in range(3) for name in ("fvu", "error_share", *scores)}
    wanted |= {f"all layers spliced, {name}" for name in ("fvu", *scores)}
    wanted |= {"error share", "perturbations, cosine", "perturbations, nmse"}
    by_control = {one: [c.figure for c in evaluated.claims if c.control is one] for one in CONTROLS}
    assert all(sorted(figures) == sorted(wanted) for figures in by_control.values())
    given, random = (
        next(score for score in evaluated.layers if score.dictionary is one and score.layer == 1)
        for one in (Dictionary.GIVEN, Dictionary.RANDOM)
    )
    against = {claim.figure: claim for claim in evaluated.claims if claim.control is Dictionary.RANDOM}
    share = random.error_share.value - given.error_share.value
    assert against["layer 1, error_share"].difference.value == pytest.approx(share)
    zero = given.ce_score_zero.value - random.ce_score_zero.value
    assert against["layer 1, ce_score_zero"].difference.value == pytest.approx(zero)
    given, random = evaluated.spliced[:2]
    spliced = against["all layers spliced, fvu"].difference
    assert spliced.value == pytest.approx(random.fvu.value - given.fvu.value)
    # The two divergence scores of a run differ by a positive factor only.
    every = {(claim.control, claim.figure): claim.beats for claim in evaluated.claims}
    for (control, figure), beats in every.items():
        if figure.endswith("kl_score"):
            assert beats == every[control, f"{figure}_zero"]


def test_layers_are_counted_in_the_spliced_run(evaluated):
    """Every dictionary has them; the first layer's are those of the plain run, further up they move."""
    plain = {(score.layer, score.dictionary): score for score in evaluated.layers}
    for score in evaluated.spliced:
        assert [row.layer for row in score.layers] == [0, 1, 2]
        first, last = plain[0, score.dictionary], plain[2, score.dictionary]
        assert score.layers[0].l0.value == first.l0.value
        assert score.layers[0].fvu.value == pytest.approx(first.fvu.value, rel=1e-5)
        assert score.layers[2].fvu.value != pytest.approx(last.fvu.value, rel=1e-5)
        assert score.fvu.low <= score.fvu.value <= score.fvu.high
        assert score.l0.low < score.l0.value < score.l0.high
        assert 0 <= score.dead_share < 1


def test_intervals_hold_their_figures(evaluated):
    """Every interval contains its value, and is none of width 0 where contexts differ."""
    for score in evaluated.layers:
        assert score.fvu.low <= score.fvu.value <= score.fvu.high
        assert score.fvu.low < score.fvu.high


def test_the_same_seed_gives_the_same_figures(session, evaluated):
    """Law 9: figures, intervals and claims are the same again; another seed draws others."""
    again = finish(evaluate_replacement_set(session, command(session)))
    assert again.layers == evaluated.layers
    assert (again.spliced, again.depths, again.claims) == (
        evaluated.spliced,
        evaluated.depths,
        evaluated.claims,
    )
    other = finish(evaluate_replacement_set(session, command(session, seed=1, layers=(0,))))
    assert other.layers[1].fvu != evaluated.layers[1].fvu


def test_chosen_layers_are_scored_and_all_are_spliced(session, evaluated):
    """`layers` narrows what is scored one by one; the spliced figures stay those of the whole set."""
    found = finish(evaluate_replacement_set(session, command(session, layers=(2,), controls=())))
    assert [score.layer for score in found.layers] == [2]
    assert found.spliced[0].ce_spliced == evaluated.spliced[0].ce_spliced
    assert found.claims == ()


def test_the_budget_holds_during_an_evaluation(session, evaluated):
    """All layers spliced at once page through a budget of one layer."""
    seen = session.hosted.replacements["tc"].info.residency
    assert seen.peak_bytes <= 30_000 < seen.total_bytes
    assert seen.evictions > 10


def test_partial_coverage_and_mixed_kinds_are_measured(tmp_path):
    """A skip transcoder, an SAE of another site, and a layer that stays the model's own: all has controls."""
    session = Session(hosted=tiny_hosted("llama"))
    folder = write_transcoders(session.hosted, tmp_path / "mixed", layers=[0], skip=True)
    write_saes(session.hosted, folder, layers=[2], kind=SiteKind.RESID_POST)
    source = ReplacementSource(name="tc", folder=str(folder), accept_degraded=True)
    finish(load_replacement_set(session, LoadReplacementSet(source=source)))
    found = finish(evaluate_replacement_set(session, command(session)))
    assert [score.layer for score in found.layers] == [0] * 4 + [2] * 4
    assert [score.dictionary for score in found.spliced] == [Dictionary.GIVEN, *CONTROLS]
    for score in (*found.layers, *found.spliced):
        assert math.isfinite(score.ce_score.value)
        assert math.isfinite(score.kl_score_zero.value)
    # Only layer 0 has layers above it, and what stands there is the model's own or the SAE.
    assert {row.depth for row in found.depths} == {1, 2}
    assert {row.dictionary for row in found.depths} == {Dictionary.GIVEN, *CONTROLS}


def test_bad_requests_are_refused(session):
    """A text that is too short, a set that is not loaded, the set as its own control."""
    with pytest.raises(BrokenCorpusError, match="contexts of 32 tokens"):
        finish(evaluate_replacement_set(session, command(session, text=" the cat")))
    with pytest.raises(ReplacementNotFoundError):
        finish(evaluate_replacement_set(session, command(session, name="other")))
    with pytest.raises(InvalidRequestError):
        finish(evaluate_replacement_set(session, command(session, controls=(Dictionary.GIVEN,))))
