"""CompareFeatures against plain cosines, over neurons and over sets of several kinds; growing graphs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch.nn.functional import cosine_similarity

from tests.builders import tiny_hosted
from tests.resident_sets import NAME, resident_set
from trephine.app.circuits.pruning import numbers
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuits import DiscoverCircuit
from trephine.domain.directions import CompareFeatures
from trephine.domain.errors import FeatureOutOfRangeError, InvalidRequestError
from trephine.domain.partials import SHOWN_EDGES, SHOWN_NODES
from trephine.domain.sites import NEURONS, FeatureRef
from trephine.engine.edits.directions import compare
from trephine.engine.graphs.discover import discover_circuit
from trephine.engine.models.quanta import finish
from trephine.engine.models.session import Session
from trephine.engine.replacements.sets import opened


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def plain(hosted, name: str, one: FeatureRef, other: FeatureRef) -> float:
    """The mean of two cosines, from the layers themselves."""
    with opened(hosted, name, sorted({one.layer, other.layer})) as layers:

        def both(feature: FeatureRef) -> tuple[torch.Tensor, torch.Tensor]:
            layer = layers[feature.layer]
            writes = sum(layer.decoders([feature.index], site) for site in layer.info.sites_out)
            return layer.encoders([feature.index])[0].float(), writes[0].float()

        pairs = zip(both(one), both(other), strict=True)
        return float(sum(cosine_similarity(a, b, dim=0) for a, b in pairs) / 2)


def asked(name: str, places: Sequence[tuple[int, int]], **changes: object) -> CompareFeatures:
    features = tuple(FeatureRef(replacement=name, layer=layer, index=index) for layer, index in places)
    given = {"positive": (True,) * len(features), "min_similarity": -1.0, "max_layers_apart": 9}
    return CompareFeatures(features=features, **(given | changes))


PLACES = [(2, 3), (0, 1), (1, 5), (0, 7), (2, 0)]


@pytest.mark.parametrize("kind", ["neurons", "jumprelu", "clt", "topk"])
def test_similarities_are_the_mean_of_two_cosines(kind):
    """Every pair once, whatever order the layers are read in; cross-layer features sum their decoders."""
    hosted, name = tiny_hosted("llama"), NEURONS
    if kind != "neurons":
        resident_set(hosted, kind)
        name = NAME
    command = asked(name, PLACES)
    found = finish(compare(Session(hosted=hosted), command))
    columns = [numbers(column).tolist() for column in (found.first, found.second, found.similarity)]
    assert list(zip(*columns[:2], strict=True)) == [(i, j) for i in range(5) for j in range(i + 1, 5)]
    for i, j, similarity in zip(*columns, strict=True):
        expected = plain(hosted, name, command.features[i], command.features[j])
        assert similarity == pytest.approx(expected, abs=1e-5)


def test_signs_turn_round_and_bounds_leave_out():
    """A negative neuron writes the opposite; distant layers and less similar pairs are not there."""
    hosted = tiny_hosted("llama")
    straight = finish(compare(Session(hosted=hosted), asked(NEURONS, PLACES)))
    signs = (False, True, True, True, True)
    turned = finish(compare(Session(hosted=hosted), asked(NEURONS, PLACES, positive=signs)))
    flip = [
        -1 if 0 in pair else 1 for pair in zip(*map(numbers, (straight.first, straight.second)), strict=True)
    ]
    assert numbers(turned.similarity) == pytest.approx(numbers(straight.similarity) * flip)
    near = finish(compare(Session(hosted=hosted), asked(NEURONS, PLACES, max_layers_apart=0)))
    assert list(zip(*map(lambda x: numbers(x).tolist(), (near.first, near.second)), strict=True)) == [
        (0, 4),
        (1, 3),
    ]
    few = finish(compare(Session(hosted=hosted), asked(NEURONS, PLACES, min_similarity=0.0)))
    assert len(numbers(few.first)) == (numbers(straight.similarity) >= 0).sum() < 10
    for broken, error in (
        (asked(NEURONS, [(0, 10**6)]), FeatureOutOfRangeError),
        (asked(NEURONS, []), InvalidRequestError),
    ):
        with pytest.raises(error):
            finish(compare(Session(hosted=hosted), broken))


@pytest.mark.parametrize("kind", [None, "jumprelu"])
def test_partial_graphs_grow_towards_the_circuit(kind):
    """The last partial's nodes are nodes of the circuit with its influences, its edges edges of its rows."""
    hosted = tiny_hosted("llama")
    if kind is not None:
        resident_set(hosted, kind)
    command = DiscoverCircuit(
        prompt="When Mary and John went to the store John gave a drink to",
        target=LogitTarget(token=" Mary", against=" John"),
        replacement=NAME if kind else NEURONS,
        max_feature_nodes=100,
        edge_mass=1.0,
        verify_nodes=0,
    )
    steps, work = [], discover_circuit(hosted, command)
    while True:
        try:
            step = next(work)
        except StopIteration as ended:
            circuit = ended.value
            break
        if step is not None and step.partial is not None:
            steps.append(step.partial)
    assert [one.expanded for one in steps] == [64, 100]
    assert steps[0].inside < steps[1].inside <= 1
    last = steps[-1]
    assert len(last.nodes) == SHOWN_NODES
    assert len(last.edges) <= SHOWN_EDGES
    places = {(n.layer, n.position, n.feature): i for i, n in enumerate(circuit.nodes) if n.kind == "feature"}
    indices = [places[one.layer, one.position, one.feature] for one in last.nodes]
    for one, index in zip(last.nodes, indices, strict=True):
        assert one.influence == pytest.approx(circuit.nodes[index].influence, rel=1e-5)
    columns = [
        numbers(x).tolist() for x in (circuit.edges.source, circuit.edges.target, circuit.edges.weight)
    ]
    weights = {(source, target): weight for source, target, weight in zip(*columns, strict=True)}
    logit = len(circuit.nodes) - 1
    for edge in last.edges:
        target = logit if edge.target < 0 else indices[edge.target]
        assert weights[indices[edge.source], target] == pytest.approx(edge.weight, rel=1e-5)


def test_a_set_that_is_exchanged_meanwhile_changes_nothing():
    """Directions of two sets are not compared under one name."""
    calm, hosted = tiny_hosted("llama"), tiny_hosted("llama")
    resident_set(calm, "relu")
    resident_set(hosted, "relu")
    command = asked(NAME, PLACES)
    work = compare(Session(hosted=hosted), command)
    next(work)
    resident_set(hosted, "clt")
    assert finish(work) == finish(compare(Session(hosted=calm), command))
