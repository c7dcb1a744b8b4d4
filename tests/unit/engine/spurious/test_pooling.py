"""Pooled vectors are the plain model's, and with features removed those of the edit."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from tests.builders import tiny_hosted
from tests.resident_sets import resident_set
from tests.spurious_texts import ambiguous, attribute_texts
from trephine.domain.dataset_circuits import Estimator, NodeAblation
from trephine.domain.errors import LayerOutOfRangeError
from trephine.domain.interventions import Ablate, FeatureTarget, Intervention
from trephine.domain.sites import FeatureRef, Site, SiteKind
from trephine.domain.spurious_heads import Pooling, ProbeHead
from trephine.domain.spurious_removal import RemoveSpuriousFeatures
from trephine.engine.dataset_circuits import estimators
from trephine.engine.dataset_circuits.averaging import patched
from trephine.engine.dataset_circuits.contexts import Context
from trephine.engine.dataset_circuits.estimators import estimator_of
from trephine.engine.dataset_circuits.packs import capture_layout, packs
from trephine.engine.models.quanta import finish
from trephine.engine.runs.rows import RowInput, run_rows
from trephine.engine.spurious.effects import Contributions, HeadReadOff, feature_space
from trephine.engine.spurious.evidence import firings_of
from trephine.engine.spurious.judging import judge_features
from trephine.engine.spurious.pooling import Readout, pool_texts
from trephine.engine.spurious.study import open_study

TEXTS = ("When Mary and John went", "the store is", "abcdefgh", "no")


def _ids(hosted):
    return [tuple(hosted.encode(text)) for text in TEXTS]


def _stream(hosted, ids, layer, interventions=()):
    """What the stream is after a layer, or behind the final norm, by the intervention language."""
    site = Site(kind=SiteKind.RESID_POST, layer=layer if layer is not None else hosted.info.n_layers - 1)
    rows = run_rows(hosted, [RowInput(ids, interventions)], reads=[site]).values[0][site]
    return rows if layer is not None else hosted.architecture.final_norm.module(rows)


def _pooled(rows, pooling):
    return rows[-1] if pooling is Pooling.LAST else rows[1:].mean(0)


@pytest.mark.parametrize("layer", [0, 1, None])
@pytest.mark.parametrize("pooling", list(Pooling))
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_packed_texts_are_pooled_as_if_alone(family, layer, pooling):
    """Texts of one pass do not see each other, and nothing above the site is needed."""
    hosted = tiny_hosted(family)
    found = finish(pool_texts(hosted, Readout(layer=layer, pooling=pooling), _ids(hosted)))
    with torch.inference_mode():
        alone = torch.stack([_pooled(_stream(hosted, ids, layer), pooling) for ids in _ids(hosted)])
    assert torch.allclose(found, alone, atol=2e-5)


@pytest.mark.parametrize("kind", ["neurons", "relu", "clt", "resid_post"])
def test_removed_features_are_those_of_the_edit(kind):
    """Zero at every position, the first included: what an export does too."""
    hosted = tiny_hosted("llama")
    name = "neurons" if kind == "neurons" else resident_set(hosted, kind)
    features = [FeatureRef(replacement=name, layer=layer, index=i) for layer in (0, 1) for i in (1, 3, 5)]
    edit = tuple(Intervention(target=FeatureTarget(feature=one), operation=Ablate()) for one in features)
    readout = Readout(layer=None, pooling=Pooling.MEAN)
    found = finish(pool_texts(hosted, readout, _ids(hosted), features))
    with torch.inference_mode():
        edited = torch.stack(
            [_pooled(_stream(hosted, ids, None, edit), Pooling.MEAN) for ids in _ids(hosted)]
        )
    plain = finish(pool_texts(hosted, readout, _ids(hosted)))
    assert torch.allclose(found, edited, atol=2e-5)
    assert not torch.allclose(found, plain, atol=1e-3), "the features did nothing here"


def test_no_hook_outlives_a_pass():
    """Neither those of the removal nor the one that ends the pass early."""
    hosted = tiny_hosted("llama")
    readout = Readout(layer=0, pooling=Pooling.LAST)
    finish(pool_texts(hosted, readout, _ids(hosted), [FeatureRef(layer=0, index=0)]))
    hooks = [m for m in hosted.model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks


@pytest.mark.parametrize(("layer", "pooling"), [(1, Pooling.MEAN), (None, Pooling.LAST), (0, Pooling.LAST)])
def test_contributions_are_the_slope_of_the_decision(layer, pooling):
    """Scaling one neuron's activation by 1 - step lowers the decision by step times its contribution."""
    hosted = tiny_hosted("llama", dtype=torch.float64)
    readout, direction = Readout(layer=layer, pooling=pooling), torch.randn(32, dtype=torch.float64)
    space = feature_space(hosted, "neurons", None, readout)
    measure = Contributions(hosted, space, readout, Estimator.ATTRIBUTION_PATCHING, 1)
    ids = _ids(hosted)
    (found,) = finish(measure.of(ids, [direction]))
    step, chosen = 0.02, (0, 7, 40)  # norms compute in float32, whatever the model's type
    for index in chosen:
        slopes = []
        for sign in (1, -1):
            margins = [
                _scaled(hosted, one, index, 1 - sign * step, layer, pooling) @ direction for one in ids
            ]
            slopes.append(torch.stack(margins))
        slope = (slopes[1] - slopes[0]) / (2 * step)
        assert torch.allclose(found[:, index].double(), slope, atol=1e-3)
    assert found[:, list(chosen)].abs().max() > 0.05


@pytest.mark.parametrize(
    ("kind", "covered", "asked", "site", "field"),
    [
        ("neurons", None, (0, 2), 1, "layers[1]"),
        ("neurons", None, (2,), 0, "layers[0]"),
        ("clt", None, (1, 0), 1, "layers[0]"),
        ("clt", None, None, 1, "decision.layer"),
        ("relu", (1, 2), None, 0, "decision.layer"),
    ],
)
def test_layers_that_a_head_does_not_read_are_refused(kind, covered, asked, site, field):
    """Before anything runs; features of a cross-layer transcoder write above their own layer."""
    hosted = tiny_hosted("llama")
    name = "neurons" if kind == "neurons" else resident_set(hosted, kind, layers=covered)
    with pytest.raises(LayerOutOfRangeError, match="head, which reads after layer") as refused:
        feature_space(hosted, name, asked, Readout(layer=site, pooling=Pooling.MEAN))
    assert refused.value.context["field"] == field


def _scaled(hosted, ids, index, factor, layer, pooling):
    """Pool with one neuron of layer 0 scaled at positions >= 1."""

    def scale(_, args):
        args[0][:, 1:, index] *= factor

    handle = hosted.architecture.blocks[0].mlp.down.register_forward_pre_hook(scale)
    try:
        with torch.inference_mode():
            states = hosted.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    finally:
        handle.remove()
    return _pooled(states[-1 if layer is None else layer + 1][0], pooling)


@pytest.mark.parametrize(
    "estimator", [Estimator.ATTRIBUTION_PATCHING, Estimator.RELP, Estimator.INTEGRATED_GRADIENTS]
)
@pytest.mark.parametrize(
    ("family", "kind"), [("llama", "neurons"), ("gemma2", "relu"), ("gpt2", "resid_post")]
)
def test_effects_run_no_block_above_the_head(family, kind, estimator):
    """The pass ends at the head's site, and the effects are those of a network that is captured whole."""
    hosted = tiny_hosted(family)
    name = "neurons" if kind == "neurons" else resident_set(hosted, kind)
    readout, ids = Readout(layer=1, pooling=Pooling.MEAN), _ids(hosted)
    space, direction = feature_space(hosted, name, None, readout), torch.randn(hosted.info.d_model)
    with _counted_blocks(hosted) as runs:
        (found,) = finish(Contributions(hosted, space, readout, estimator, 2).of(ids, [direction]))
    assert runs[0] == runs[1] > 0
    assert not any(runs[2:]), "blocks above the head were run"
    assert torch.equal(found, _through_everything(hosted, space, readout, estimator, ids, direction))
    assert found.abs().max() > 1e-3


def test_the_places_that_are_shown_need_no_block_above_the_head():
    """Neither do pooled texts."""
    hosted = tiny_hosted("llama")
    command = RemoveSpuriousFeatures(
        training=ambiguous(),
        attribute_texts=attribute_texts(),
        decision=ProbeHead(layer=1, pooling=Pooling.MEAN),
    )
    with _counted_blocks(hosted) as runs:
        study = finish(open_study(hosted, command))
        judged = finish(judge_features(study))
        assert any(finish(firings_of(study, judged.candidates[:4])))
    assert not any(runs[2:])


@contextmanager
def _counted_blocks(hosted):
    """Count the passes of every block."""
    runs = [0] * hosted.info.n_layers

    def count(layer):
        def hook(_module, _args):
            runs[layer] += 1

        return hook

    handles = [
        block.module.register_forward_pre_hook(count(layer))
        for layer, block in enumerate(hosted.architecture.blocks)
    ]
    try:
        yield runs
    finally:
        for handle in handles:
            handle.remove()


def _through_everything(hosted, space, readout, which, ids, direction):
    """The same effects with every block run: `capture` without an end."""
    contexts = [Context(text="", ids=one, twin=None, direction=direction, bias=0.0) for one in ids]
    (pack,) = packs(contexts, ids, hosted.model.device)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            estimators, "capture_layout", lambda hosted, layout, top: capture_layout(hosted, layout)
        )
        read_off = HeadReadOff(readout=readout, direction=direction)
        estimator = estimator_of(hosted, space, which, steps=2, candidates=None, read_off=read_off)
        return -finish(estimator.estimate(patched(hosted, space, pack, NodeAblation.ZERO, ())))
