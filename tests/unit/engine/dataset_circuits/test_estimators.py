"""Estimators against patches by hand, small steps, and each other."""

from __future__ import annotations

import pytest
import torch

from tests.builders import FAMILIES, tiny_hosted
from tests.dataset_examples import examples
from tests.resident_sets import resident_set
from trephine.domain.dataset_circuits import Estimator, NodeAblation, PositionRule
from trephine.domain.interventions import ErrorTerm
from trephine.domain.sites import NEURONS
from trephine.engine.dataset_circuits.ablated import AblatedModel
from trephine.engine.dataset_circuits.averaging import patched
from trephine.engine.dataset_circuits.contexts import read_contexts
from trephine.engine.dataset_circuits.estimators import PatchedPack, estimator_of
from trephine.engine.dataset_circuits.packs import donor_ids, packs
from trephine.engine.dataset_circuits.patches import LayerState
from trephine.engine.dataset_circuits.space import node_space
from trephine.engine.operators import capture
from trephine.engine.quanta import finish
from trephine.engine.readouts import logit_readout
from trephine.engine.totals import sweep_half_rule


class Scene:
    """One pack of a tiny model, patched."""

    def __init__(
        self, hosted, name=NEURONS, rule=PositionRule.KEPT, ablation=NodeAblation.RESAMPLE, n=3
    ) -> None:
        self.hosted = hosted
        self.contexts = read_contexts(hosted, examples(n), rule, split="training")
        length = len(self.contexts[0].ids)
        self.space = node_space(hosted, name, None, rule, length, ErrorTerm.LIVE)
        (pack,) = packs(
            self.contexts, donor_ids(self.contexts, seed=0, same_length=False), hosted.model.device
        )
        self.run = patched(hosted, self.space, pack, ablation, ())

    def estimate(self, which, *, steps=1, nodes=None, run=None):
        """Effects `(n_contexts, n_nodes)`."""
        estimator = estimator_of(self.hosted, self.space, which, steps=steps, candidates=nodes)
        with torch.inference_mode():
            return finish(estimator.estimate(run or self.run))

    def nearer(self, way):
        """The same run with patches only so far from the clean activations."""
        states = tuple(
            LayerState(activations=clean.activations + way * (new.activations - clean.activations), errors={})
            for clean, new in zip(self.run.clean, self.run.replaced, strict=True)
        )
        return PatchedPack(
            pack=self.run.pack, operators=self.run.operators, clean=self.run.clean, replaced=states
        )

    def slope(self, nodes, step=0.01):
        """Exact patching a little forward and backward, per whole way."""
        ahead, back = (self.estimate(Estimator.EXACT, nodes=nodes, run=self.nearer(w)) for w in (step, -step))
        return (ahead - back) / (2 * step)


def some_nodes(effects, count=12):
    """Nodes spread over all effects that are not 0."""
    alive = (effects.abs().sum(0) > 0).nonzero()[:, 0]
    return alive[torch.linspace(0, len(alive) - 1, count).long()]


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_patching_is_a_patch_by_hand(family):
    """A hook on the plain model, one context at a time, gives the same change of the metric."""
    scene = Scene(tiny_hosted(family, dtype=torch.float64))
    nodes = some_nodes(scene.estimate(Estimator.ATTRIBUTION_PATCHING), 6)
    found = scene.estimate(Estimator.EXACT, nodes=nodes)
    places, positions, indices = (column.tolist() for column in scene.space.split(nodes))
    for number, context in enumerate(scene.contexts):
        plain = _logits(scene.hosted, context, None)
        for node, place, position, index in zip(nodes.tolist(), places, positions, indices, strict=True):
            with torch.inference_mode():
                twin = capture(scene.hosted.model, scene.hosted.architecture, context.twin)
            value = twin.layers[place].activation[position, index]
            change = _logits(scene.hosted, context, (place, position, index, value)) - plain
            assert found[number, node] == pytest.approx(float(change), abs=1e-6)


def _logits(hosted, context, write):
    """Answer less wrong answer, before a soft cap; `write` sets one neuron at one position."""
    block = hosted.architecture.blocks[0 if write is None else write[0]]

    def hook(_module, args):
        x = args[0].clone()
        x[0, write[1], write[2]] = write[3]
        return (x, *args[1:])

    handle = block.mlp.down.register_forward_pre_hook(hook) if write is not None else None
    with torch.inference_mode():
        logits = hosted.model(input_ids=torch.tensor([context.ids]), use_cache=False).logits[0, -1].double()
    if handle is not None:
        handle.remove()
    if hosted.architecture.logit_softcap is not None:
        cap = hosted.architecture.logit_softcap
        logits = cap * torch.atanh(logits / cap)
    words = context.text.removeprefix("When").split(" ")[1:]
    right, wrong = (hosted.resolve_target(f" {word}") for word in words[:2])
    return logits[right] - logits[wrong]


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
    scene = Scene(hosted, resident_set(hosted, kind), PositionRule.SUMMED)
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
        totals = finish(sweep_half_rule(operators, readout))
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
