"""Interventions on features of loaded sets, against plain arithmetic on the model's own activations."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted
from tests.resident_sets import KINDS, NAME, resident_set
from trephine.domain.errors import FeatureOutOfRangeError, LayerOutOfRangeError, UnsupportedInterventionError
from trephine.domain.interventions import (
    Ablate,
    Add,
    AddNormScaled,
    Clamp,
    Condition,
    ErrorTerm,
    FeatureTarget,
    Intervention,
    MeanAblate,
    ProjectOut,
    Resample,
    Scale,
    Selector,
    SetTo,
)
from trephine.domain.sites import FeatureRef
from trephine.engine.models.sites import touching
from trephine.engine.replacements.sets import opened
from trephine.engine.runs.rows import RowInput, run_rows

IDS = [5, 17, 44, 9, 9, 301, 23, 120, 77]
CASES = [(f, k) for f in FAMILIES for k in KINDS if not (k == "attn_out" and f == "gpt_neox")]


@pytest.fixture(autouse=True)
def _inference():
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield


def change(layer, index, operation, **rest: Any):
    feature = FeatureRef(replacement=NAME, layer=layer, index=index)
    return Intervention(target=FeatureTarget(feature=feature), operation=operation, **rest)


def clean_code(hosted, layer, sites=()):
    """The layer, its code on the clean run and the clean activations of some sites."""
    with opened(hosted, NAME, [layer]) as resident:
        found = resident[layer]
    wanted = sorted({found.info.site_in, *found.info.sites_out, *sites})
    values = run_rows(hosted, [RowInput(IDS)], reads=wanted).values[0]
    return found, found.encode(values[found.info.site_in]), values


def busiest(code):
    """The feature that is active at most positions >= 1."""
    return int(code.active[1:].sum(0).argmax())


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_a_live_change_adds_the_difference_times_the_decoder(family, kind):
    """At its first output a site becomes y + (f' - f) W_dec; the echo counts activations."""
    hosted = tiny_hosted(family)
    resident_set(hosted, kind)
    layer, code, values = clean_code(hosted, 1)
    index = busiest(code)
    site = layer.info.sites_out[0]
    output = run_rows(hosted, [RowInput(IDS, (change(1, index, Scale(factor=-0.5)),))], reads=[site])
    scale = code.scale_out if isinstance(code.scale_out, torch.Tensor) else torch.tensor(code.scale_out)
    moved = -1.5 * code.activations[:, index, None] * layer.decoders([index], site) * scale
    torch.testing.assert_close(output.values[0][site], values[site] + moved, rtol=1e-4, atol=1e-5)
    (applied,) = output.applied[0]
    assert applied.positions == len(IDS)
    assert applied.changed == int((code.activations[:, index] != 0).sum())
    assert applied.max_change == pytest.approx(float(1.5 * code.activations[:, index].abs().max()), rel=1e-4)


@pytest.mark.parametrize("kind", ["jumprelu", "skip", "topk", "resid_post"])
@pytest.mark.parametrize("term", [ErrorTerm.FROZEN, ErrorTerm.DROP])
def test_the_error_term_is_kept_or_dropped(kind, term):
    """The output is the reconstruction with the change, plus the clean run's error or nothing."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, kind)
    layer, code, values = clean_code(hosted, 1)
    index, site = busiest(code), layer.info.sites_out[0]
    plan = change(1, index, SetTo(value=0.7), error_term=term, selector=Selector(positions=(2, 5)))
    got = run_rows(hosted, [RowInput(IDS, (plan,))], reads=[site]).values[0][site]
    activations = code.activations.clone()
    activations[:, index] = 0.7
    clean = layer.reconstruct(values[layer.info.site_in])[site]
    difference = (activations - code.activations) @ layer.W_dec
    expected = clean + difference + (values[site] - clean if term is ErrorTerm.FROZEN else 0)
    torch.testing.assert_close(got[[2, 5]], expected[[2, 5]], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[[0, 1, 3, 4]], values[site][[0, 1, 3, 4]])


def test_operations_on_one_feature_act_one_after_the_other():
    """Scale, then add, then clamp, of one encoding: not each on a freshly encoded output."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, "resid_post")
    layer, code, values = clean_code(hosted, 1)
    index, site = busiest(code), layer.info.site_in
    plans = tuple(change(1, index, op) for op in (Scale(factor=2.0), Add(amount=0.5), Clamp(high=1.0)))
    got = run_rows(hosted, [RowInput(IDS, plans)], reads=[site]).values[0][site]
    after = (2 * code.activations[:, index] + 0.5).clamp(max=1.0)
    moved = (after - code.activations[:, index])[:, None] * layer.decoders([index], site)
    torch.testing.assert_close(got, values[site] + moved, rtol=1e-4, atol=1e-5)


def test_a_cross_layer_feature_is_changed_at_every_site_that_it_writes():
    """Ablating it takes its decoder out of each later MLP output, the layers between live."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, "clt")
    layer, code, values = clean_code(hosted, 0)
    index, outputs = busiest(code), layer.info.sites_out
    assert len(outputs) == 3
    got = run_rows(hosted, [RowInput(IDS, (change(0, index, Ablate()),))], reads=list(outputs)).values[0]
    first = -code.activations[:, index, None] * layer.decoders([index], outputs[0])
    torch.testing.assert_close(got[outputs[0]], values[outputs[0]] + first, rtol=1e-4, atol=1e-5)
    # The same by hand: the clean decoders' shares are taken out of each output, everything else live.
    touches = {
        site: partial(_take, code.activations[:, index, None] * layer.decoders([index], site))
        for site in outputs
    }
    with touching(hosted.architecture, touches):
        by_hand = run_rows(hosted, [RowInput(IDS)], reads=[]).logits[0]
    plan = (change(0, index, Ablate()),)
    torch.testing.assert_close(
        run_rows(hosted, [RowInput(IDS, plan)]).logits[0], by_hand, rtol=1e-4, atol=1e-4
    )


def _take(share, x):
    x[0] -= share


def test_means_and_donors_are_activations_of_the_feature():
    """Mean-ablation and resampling read the feature on the other text."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, "jumprelu")
    layer, code, values = clean_code(hosted, 1)
    index, site = busiest(code), layer.info.sites_out[0]
    donor = "When Mary went to the store"
    there = run_rows(hosted, [RowInput(hosted.encode(donor))], reads=[layer.info.site_in]).values[0]
    other = layer.encode(there[layer.info.site_in]).activations[:, index]
    decoder = layer.decoders([index], site)
    for operation, after in (
        (MeanAblate(text=donor), other[1:].mean().expand(3)),
        (Resample(donor=donor), other[1:4]),
    ):
        plan = change(1, index, operation, selector=Selector(positions=(1, 2, 3)))
        got = run_rows(hosted, [RowInput(IDS, (plan,))], reads=[site]).values[0][site]
        moved = (after - code.activations[1:4, index])[:, None] * decoder
        torch.testing.assert_close(got[1:4], values[site][1:4] + moved, rtol=1e-4, atol=1e-5)


def test_projecting_out_removes_the_decoder_from_the_output():
    """Whatever wrote it, the output has no component along the decoder."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, "jumprelu")
    layer, _, _ = clean_code(hosted, 1)
    site = layer.info.sites_out[0]
    got = run_rows(hosted, [RowInput(IDS, (change(1, 3, ProjectOut()),))], reads=[site]).values[0][site]
    assert (got @ layer.decoders([3], site)[0]).abs().max() < 1e-4


def test_a_condition_may_be_a_feature_of_a_set():
    """The change happens only where the condition's feature is large enough."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, "jumprelu")
    _, early, _ = clean_code(hosted, 0)
    asked = busiest(early)
    _, code, _ = clean_code(hosted, 1)
    feature = FeatureRef(replacement=NAME, layer=0, index=asked)
    bound = float(early.activations[:, asked].median()) + 1e-6
    plan = change(1, busiest(code), Add(amount=1.0), condition=Condition(feature=feature, at_least=bound))
    (applied,) = run_rows(hosted, [RowInput(IDS, (plan,))]).applied[0]
    assert applied.positions == int((early.activations[:, asked] >= bound).sum())
    assert 0 < applied.positions < len(IDS)


def test_rows_do_not_see_each_other():
    """Law 7: a row with a set's feature changed is the same alone and in a ragged batch (law 6 after it)."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, "mixed")
    plans = tuple(change(n, 5, Scale(factor=3.0)) for n in range(3))
    before = run_rows(hosted, [RowInput(IDS)]).logits[0]
    alone = run_rows(hosted, [RowInput(IDS, plans)]).logits[0]
    beside = run_rows(
        hosted, [RowInput(IDS[:4]), RowInput(IDS, plans), RowInput([*IDS, 3, 4], (change(0, 1, Ablate()),))]
    ).logits[1]
    torch.testing.assert_close(beside, alone, rtol=0, atol=3e-4)
    assert torch.equal(run_rows(hosted, [RowInput(IDS)]).logits[0], before)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in hosted.model.modules())
    assert hooks == 0


REFUSED = [
    (change(1, 40, Ablate()), FeatureOutOfRangeError, "features 0 to 39", "jumprelu"),
    (change(7, 0, Ablate()), LayerOutOfRangeError, "does not cover layer 7", "jumprelu"),
    (
        change(1, 0, AddNormScaled(fraction=0.1)),
        UnsupportedInterventionError,
        "needs a direction",
        "jumprelu",
    ),
    (
        change(0, 0, Ablate(), error_term=ErrorTerm.DROP),
        UnsupportedInterventionError,
        "leave it `live`",
        "clt",
    ),
    (change(0, 0, ProjectOut()), UnsupportedInterventionError, "no one decoder", "clt"),
]


@pytest.mark.parametrize(("plan", "error", "says", "kind"), REFUSED)
def test_what_a_set_cannot_mean_is_refused(plan, error, says, kind):
    """By a typed error that says what to do, before any work."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, kind)
    with pytest.raises(error, match=says):
        run_rows(hosted, [RowInput(IDS, (plan,))])


def test_one_layer_has_one_error_term_in_a_row():
    """Two features of a layer cannot disagree about what becomes of its error."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, "jumprelu")
    plans = (change(1, 0, Ablate()), change(1, 1, Ablate(), error_term=ErrorTerm.DROP))
    with pytest.raises(UnsupportedInterventionError, match="share one error term"):
        run_rows(hosted, [RowInput(IDS, plans)])


def test_a_condition_must_be_known_when_the_layer_is_encoded():
    """A transcoder decides before the MLP runs, so that neurons of its own layer cannot be asked."""
    hosted = tiny_hosted("llama")
    resident_set(hosted, "jumprelu")
    asked = Condition(feature=FeatureRef(layer=1, index=0), at_least=0.0)
    with pytest.raises(UnsupportedInterventionError, match="computed after mlp_in of layer 1 is read"):
        run_rows(hosted, [RowInput(IDS, (change(1, 3, Add(amount=1.0), condition=asked),))])
