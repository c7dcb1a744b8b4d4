"""The ablated model against interventions, which are another implementation."""

from __future__ import annotations

import pytest
import torch

from tests.builders import tiny_hosted
from tests.dataset_examples import examples
from tests.resident_sets import resident_set
from trephine.domain.dataset_circuits import NodeAblation, PositionRule
from trephine.domain.interventions import Ablate, ErrorTerm, FeatureTarget, Intervention, Selector
from trephine.domain.sites import NEURONS, FeatureRef
from trephine.engine.dataset_circuits.ablated import AblatedModel, keeping, start_at
from trephine.engine.dataset_circuits.contexts import read_contexts
from trephine.engine.dataset_circuits.packs import capture_layout, donor_ids, packs
from trephine.engine.dataset_circuits.patches import baseline, dataset_means, states_of
from trephine.engine.dataset_circuits.space import node_space
from trephine.engine.models.neurons import neuron_site
from trephine.engine.models.quanta import finish
from trephine.engine.runs.rows import RowInput, run_rows

CASES = [
    (NEURONS, ErrorTerm.LIVE), ("relu", ErrorTerm.LIVE), ("topk", ErrorTerm.LIVE), ("clt", ErrorTerm.LIVE),
    ("relu", ErrorTerm.FROZEN), ("skip", ErrorTerm.DROP), ("normalised", ErrorTerm.DROP),
]  # fmt: skip


class Scene:
    """Three contexts of a tiny model, with nodes."""

    def __init__(self, kind=NEURONS, term=ErrorTerm.LIVE, rule=PositionRule.SUMMED, beside=()) -> None:
        self.hosted = tiny_hosted("llama", dtype=torch.float64)
        self.name = kind if kind == NEURONS else resident_set(self.hosted, kind)
        self.contexts = read_contexts(self.hosted, examples(3), rule, split="training")
        self.space = node_space(self.hosted, (self.name, *beside), None, rule, 4, term)
        donors = donor_ids(self.contexts, seed=0, same_length=True)
        (self.pack,) = packs(self.contexts, donors, self.hosted.model.device)
        operators = capture_layout(self.hosted, self.pack.clean)
        self.plain = self.pack.metric(operators.final)
        wanted = term is not ErrorTerm.LIVE
        self.clean = states_of(self.hosted, self.space, operators, errors=wanted)
        self.model = AblatedModel(self.hosted, self.space, term)

    def zeros(self):
        """Zero states."""
        return baseline(self.space, self.pack, NodeAblation.ZERO, means=(), twins=None, like=self.clean)

    def metric(self, circuit, replaced):
        """With everything outside the circuit replaced."""
        change = keeping(self.space, self.pack, circuit, replaced)
        return self.model.metric(self.pack, change, clean=self.clean, replaced=replaced)


@pytest.mark.parametrize(("kind", "term"), CASES)
def test_zero_ablation_is_what_interventions_do(kind, term):
    """Every third node of two layers out, position 0 untouched; contexts run alone on the other side."""
    scene = Scene(kind, term)
    out = torch.arange(scene.space.count) % 3 == 0
    places, _, indices = scene.space.split(out.nonzero()[:, 0])
    selector = Selector(positions=(1, 2, 3))
    interventions = tuple(
        Intervention(
            target=FeatureTarget(
                feature=FeatureRef(replacement=scene.name, layer=scene.space.layers[place], index=index)
            ),
            operation=Ablate(),
            selector=selector,
            error_term=term,
        )
        for place, index in zip(places.tolist(), indices.tolist(), strict=True)
    )
    found = scene.metric(~out, scene.zeros())
    for number, context in enumerate(scene.contexts):
        row = run_rows(scene.hosted, [RowInput(context.ids, interventions)], allow_unmatched=True)
        words = context.text.removeprefix("When").split(" ")[1:]
        right, wrong = (scene.hosted.resolve_target(f" {word}") for word in words[:2])
        logits = row.logits[0][-1].double()
        assert found[number] == pytest.approx(float(logits[right] - logits[wrong]), abs=1e-5)
        assert abs(float(found[number] - scene.plain[number])) > 1e-4


def test_everything_kept_is_the_model_itself():
    """Live error terms: no node replaced, nothing changes."""
    scene = Scene("relu")
    everything = torch.ones(scene.space.count, dtype=torch.bool)
    assert torch.allclose(scene.metric(everything, scene.zeros()), scene.plain, atol=1e-6)


def test_means_are_per_position_where_positions_are_kept():
    """Both sides of every pair weigh the same; position 0 has no node and no mean."""
    scene = Scene(rule=PositionRule.KEPT)
    means = finish(dataset_means(scene.hosted, scene.space, [scene.pack], errors=False))
    by_hand = []
    for context in scene.contexts:
        for ids in (context.ids, context.twin):
            row = run_rows(scene.hosted, [RowInput(ids)], reads=[site(1)])
            by_hand.append(row.values[0][site(1)])
    # Norms compute in float32 also in a float64 model, and a batch rounds otherwise than a row alone.
    assert torch.allclose(means[1].activations, torch.stack(by_hand).mean(0)[1:], atol=1e-6)


def test_means_are_pooled_where_positions_are_summed():
    """One value per neuron, position 0 left out: it is a sink."""
    scene = Scene()
    means = finish(dataset_means(scene.hosted, scene.space, [scene.pack], errors=False))
    kept = Scene(rule=PositionRule.KEPT)
    by_position = finish(dataset_means(kept.hosted, kept.space, [kept.pack], errors=False))
    assert torch.allclose(means[0].activations[0], by_position[0].activations.mean(0), atol=1e-9)


def site(layer):
    """Where a layer's neurons are."""
    return neuron_site(layer)


def test_a_pass_that_starts_above_is_the_whole_pass():
    """Bit for bit; blocks below are not computed, and are themselves again afterwards."""
    scene, ran = Scene(), []
    operators = capture_layout(scene.hosted, scene.pack.clean)
    change = keeping(scene.space, scene.pack, torch.zeros(scene.space.count, dtype=torch.bool), scene.zeros())
    first = scene.hosted.architecture.blocks[0].mlp.module
    handle = first.register_forward_hook(lambda *_: ran.append(1))
    whole = scene.model.metric(scene.pack, change, places=(1, 2))
    started = scene.model.metric(scene.pack, change, places=(1, 2), start=start_at(operators, 1))
    again = scene.model.metric(scene.pack, change, places=(1, 2))
    handle.remove()
    assert torch.equal(whole, started)
    assert torch.equal(whole, again)
    assert len(ran) == 2
