"""Edges of dataset circuits, into the metric and into features, against whole effects and small steps."""

from __future__ import annotations

import pytest
import torch

from tests.builders import tiny_hosted
from tests.dataset_examples import request
from tests.dataset_scene import Scene, some_nodes
from tests.resident_sets import resident_set
from trephine.domain.dataset_circuits import HEADS, Discretion, Estimator, NodeAblation, PositionRule
from trephine.domain.interventions import ErrorTerm
from trephine.domain.sites import NEURONS
from trephine.engine.dataset_circuits.ablated import AblatedModel
from trephine.engine.dataset_circuits.discovery import discover_dataset_circuit
from trephine.engine.dataset_circuits.edges import METRIC, find_edges
from trephine.engine.dataset_circuits.estimators import node_gradients
from trephine.engine.dataset_circuits.patches import states_of
from trephine.engine.dataset_circuits.sweeping import Gradient
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session


def edges_between(scene, nodes):
    """Weights by source and target, summed over contexts."""
    packed = [scene.run.pack]
    found = finish(
        find_edges(scene.hosted, scene.space, packed, nodes, patch=NodeAblation.RESAMPLE, means=(), stage="")
    )
    return {(edge.source, edge.target): edge.weight * len(scene.contexts) for edge in found}


@pytest.mark.parametrize("kind", [NEURONS, HEADS, "relu", "denormalised", "of_stream", "attn_out"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_where_one_layer_has_nodes_an_edge_into_the_metric_is_the_whole_effect(family, kind):
    """What has no nodes is part of the model: MLPs and attention above follow, and nothing is lost."""
    if family == "gpt_neox" and kind in ("of_stream", "attn_out"):
        pytest.skip("parallel blocks have no such site")
    hosted = tiny_hosted(family, dtype=torch.float64)
    name = kind if kind in (NEURONS, HEADS) else resident_set(hosted, kind)
    scene = Scene(hosted, name, rule=PositionRule.SUMMED, layers=(0,))
    effects = scene.estimate(Estimator.ATTRIBUTION_PATCHING).sum(0)
    nodes = some_nodes(effects[None], min(6, int((effects != 0).sum())))
    found = edges_between(scene, nodes)
    scale = float(effects.abs().max())
    assert scale > 1e-5
    for number, node in enumerate(nodes.tolist()):
        assert found[number, METRIC] == pytest.approx(float(effects[node]), abs=1e-5 * scale)


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("kind", ["jumprelu", "of_stream"])
def test_edges_into_features_are_what_arrives_where_they_read(kind, layer):
    """Central differences with all other features and every error term held; the norm counts once, or not."""
    hosted = tiny_hosted("llama", dtype=torch.float64)
    scene = Scene(hosted, resident_set(hosted, kind), rule=PositionRule.SUMMED)
    nodes = torch.tensor([strongest(scene, 0), strongest(scene, layer)])
    expected = held_response(scene, nodes)
    assert abs(expected) > 1e-7
    assert edges_between(scene, nodes)[0, 1] == pytest.approx(expected, rel=1e-2)


def strongest(scene, place):
    """The node of a place that has the largest effect."""
    effects = scene.estimate(Estimator.ATTRIBUTION_PATCHING).abs().sum(0)
    return scene.space.offsets[place] + int(scene.space.part(effects, place).argmax())


def held_response(scene, nodes, step=1e-3):
    """What the source's patch changes in the target, times the metric's gradient there, per whole way."""
    (source, target), _, (s, t) = (column.tolist() for column in scene.space.split(nodes))
    run, read = scene.run, {}
    at = run.pack.clean.position >= 1

    def moved(way):
        def change(place, live):
            if place == target:
                read[way] = live.clone()
            new = run.clean[place].activations.clone()
            if place == source:
                new[at, s] += way * run.difference(place)[at, s]
            return new

        return change

    model = AblatedModel(scene.hosted, scene.space, ErrorTerm.FROZEN)
    clean = states_of(scene.hosted, scene.space, run.operators, errors=True)
    for way in (step, -step):
        model.metric(run.pack, moved(way), clean=clean)
    gradients = finish(node_gradients(scene.hosted, scene.space, run, Gradient()))
    response = gradients[target] * (read[step] - read[-step]) / (2 * step)
    return float(response[at, t].sum())


def test_edges_patch_with_what_effects_are_estimated_with():
    """Without twins a context resamples from another, however few contexts edges are averaged over."""
    size = Discretion(nodes=6, edge_nodes=6, edge_examples=1, random_circuits=0, curve=False, bootstrap=10)
    command = request(8, paired=False, patch=NodeAblation.RESAMPLE, size=size)
    found = finish(discover_dataset_circuit(Session(hosted=tiny_hosted("llama")), command))
    assert {edge.target for edge in found.circuits[0].edges} >= {METRIC}
