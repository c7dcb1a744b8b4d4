"""Estimators against patches by hand, small steps, and each other."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted
from tests.dataset_scene import Scene, plain_metric, some_nodes
from tests.resident_sets import reside, resident_set, sae
from trephine.domain.dataset_circuits import Estimator, NodeAblation, PositionRule
from trephine.domain.interventions import ErrorTerm
from trephine.domain.sites import Site, SiteKind
from trephine.engine.attribution.operators import capture
from trephine.engine.attribution.readouts import logit_readout
from trephine.engine.attribution.targets import Explained
from trephine.engine.attribution.totals import sweep_paths
from trephine.engine.dataset_circuits.ablated import AblatedModel
from trephine.engine.graphs.target_kinds import logit_targets_at
from trephine.engine.models.quanta import finish
from trephine.engine.replacements.normalisation import Normalisation, NormalisationRule


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_patching_is_a_patch_by_hand(family):
    """A hook on the plain model, one context at a time, gives the same change of the metric."""
    scene = Scene(tiny_hosted(family, dtype=torch.float64))
    nodes = some_nodes(scene.estimate(Estimator.ATTRIBUTION_PATCHING), 6)
    found = scene.estimate(Estimator.EXACT, nodes=nodes)
    places, positions, indices = (column.tolist() for column in scene.space.split(nodes))
    for number, context in enumerate(scene.contexts):
        plain = plain_metric(scene.hosted, context)
        for node, place, position, index in zip(nodes.tolist(), places, positions, indices, strict=True):
            with torch.inference_mode():
                twin = capture(scene.hosted.model, scene.hosted.architecture, context.twin)
            at = position, index, twin.layers[place].activation[position, index]
            down = scene.hosted.architecture.blocks[place].mlp.down
            change = plain_metric(scene.hosted, context, down, partial(_put, at)) - plain
            assert found[number, node] == pytest.approx(float(change), abs=1e-6)


def _put(at, x):
    position, index, value = at
    x[position, index] = value


@pytest.mark.parametrize("family", FAMILIES)
def test_attribution_patching_is_the_limit_of_small_patches(family):
    """Central differences over two hundredths of the way; rotations and softmax round in float32."""
    scene = Scene(tiny_hosted(family, dtype=torch.float64))
    estimate = scene.estimate(Estimator.ATTRIBUTION_PATCHING)
    nodes = some_nodes(estimate)
    scale = float(estimate[:, nodes].abs().max())
    assert torch.allclose(scene.slope(nodes)[:, nodes], estimate[:, nodes], atol=5e-3 * scale)


@pytest.mark.parametrize("kind", ["relu", "topk", "skip", "normalised", "clt", "resid_post", "attn_out"])
def test_the_limit_holds_for_features_of_sets(kind):
    """Decoders, several output sites and normalisation included; error terms stay live."""
    hosted = tiny_hosted("llama", dtype=torch.float64)
    scene = Scene(hosted, resident_set(hosted, kind), rule=PositionRule.SUMMED)
    estimate = scene.estimate(Estimator.ATTRIBUTION_PATCHING)
    nodes = some_nodes(estimate)
    scale = float(estimate[:, nodes].abs().max())
    assert scale > 1e-4
    assert torch.allclose(scene.slope(nodes)[:, nodes], estimate[:, nodes], atol=1e-2 * scale)


def test_relp_is_the_sum_over_all_paths_of_the_half_rule():
    """Zero patches of one context: minus the total effects that graphs print for neurons."""
    hosted = tiny_hosted("llama", dtype=torch.float64)
    scene = Scene(hosted, ablation=NodeAblation.ZERO)
    effects = scene.estimate(Estimator.RELP)
    context = scene.contexts[1]
    operators = capture(hosted.model, hosted.architecture, context.ids)
    words = context.text.removeprefix("When").split(" ")[1:]
    readout = logit_readout(hosted, *(hosted.resolve_target(f" {word}") for word in words[:2]))
    with torch.inference_mode():
        targets = logit_targets_at(hosted, operators, [readout], operators.n_pos - 1)
        what = Explained(targets=tuple(targets), n_pos=operators.n_pos)
        totals = finish(sweep_paths(operators, what.cotangents(live=False)))
    for place in range(hosted.info.n_layers):
        expected = -totals.neurons[place][1:]
        assert torch.allclose(scene.space.part(effects[1], place), expected, atol=1e-6)


def test_integrated_gradients_sum_to_the_change_of_a_whole_layer():
    """Completeness (Sundararajan et al. 2017), per layer, since a layer's nodes move together."""
    scene = Scene(tiny_hosted("llama", dtype=torch.float64), rule=PositionRule.SUMMED)
    effects = scene.estimate(Estimator.INTEGRATED_GRADIENTS, steps=64)
    model = AblatedModel(scene.hosted, scene.space, ErrorTerm.LIVE)
    at = scene.run.pack.clean.position[:, None]

    def whole_layer(place, live):
        return torch.where(at >= 1, scene.run.replaced[place].activations, live)

    plain = scene.run.pack.metric(scene.run.operators.final)
    for place in range(3):
        change = model.metric(scene.run.pack, whole_layer, places=(place,)) - plain
        summed = scene.space.part(effects, place).sum((1, 2)).double()
        # The rule of rectangles errs by the difference of the end gradients over the number of steps.
        assert torch.allclose(summed, change.double(), atol=0.03 * float(change.abs().max()))


def test_one_step_is_attribution_patching():
    """The clean end of the way is the first step."""
    scene = Scene(tiny_hosted("qwen3"))
    found = scene.estimate(Estimator.INTEGRATED_GRADIENTS, steps=1)
    assert torch.allclose(found, scene.estimate(Estimator.ATTRIBUTION_PATCHING), atol=1e-6)


@pytest.mark.parametrize(
    "kind", ["relu", "skip", "clt", "resid_post", "attn_out", "scaled_stream", "scaled_mlp"]
)
def test_integrated_gradients_of_features_sum_to_the_change_of_a_whole_layer(kind):
    """Dictionaries that scale their outputs back do it by what they read, not by what they leave."""
    hosted = tiny_hosted("llama", dtype=torch.float64)
    scene = Scene(hosted, _set(hosted, kind), rule=PositionRule.SUMMED)
    coarse, fine = (scene.estimate(Estimator.INTEGRATED_GRADIENTS, steps=n) for n in (16, 32))
    effects = 2 * fine - coarse  # the rule of rectangles errs by 1 / steps
    model = AblatedModel(hosted, scene.space, ErrorTerm.LIVE)
    at = scene.run.pack.clean.position[:, None]

    def whole_layer(place, live):
        return torch.where(at >= 1, scene.run.replaced[place].activations, live)

    plain = scene.run.pack.metric(scene.run.operators.final)
    for place in range(3):
        change = model.metric(scene.run.pack, whole_layer, places=(place,)) - plain
        summed = scene.space.part(effects, place).sum((1, 2)).double()
        assert torch.allclose(summed, change.double(), atol=0.02 * float(change.abs().max()))


def _set(hosted, kind):
    """A set of some kind; `scaled` ones bring every input to one norm, and undo it."""
    if not kind.startswith("scaled"):
        return resident_set(hosted, kind)
    site = SiteKind.RESID_POST if kind == "scaled_stream" else SiteKind.MLP_OUT
    rule = Normalisation(rule=NormalisationRule.CONSTANT_NORM)
    layers = range(hosted.info.n_layers)
    return reside(hosted, [sae(hosted, Site(kind=site, layer=layer), rule) for layer in layers])
