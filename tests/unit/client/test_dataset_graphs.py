"""Circuits of behaviours as graphs: what is written is what servers read, and holds what was found."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import jsonschema
import pytest

from tests.unit.app.circuits.test_circuit_files import FOLDER
from tests.unit.client.test_cli_datasets import found as stored
from trephine.app.circuits.circuit_imports import read_graph
from trephine.app.circuits.pruning import numbers
from trephine.client.dataset_graphs import graph_document
from trephine.client.decoding import decode
from trephine.client.errors import InvalidRequestError
from trephine.client.types import DatasetCircuit, PositionRule
from trephine.domain.arrays import Array
from trephine.domain.circuits import NodeKind
from trephine.rpc.wire.dataset_circuits import dataset_circuit_to_wire


@cache
def found() -> DatasetCircuit:
    """Neurons and heads, summed positions, two clusters."""
    return decode(DatasetCircuit, dataset_circuit_to_wire(stored()))


def column(values: Array) -> list[float]:
    """Its numbers."""
    return list(numbers(values).tolist())


def test_it_obeys_the_schema_and_is_read_whole():
    """Every node with its set, layer and index, every edge with its weight; the metric is the target."""
    (circuit, *_), document = found().circuits, graph_document(found(), "all")
    jsonschema.validate(document, json.loads((FOLDER / "schema.json").read_text()))
    graph = read_graph(json.dumps(document, allow_nan=False).encode()).circuit
    features = {
        (node.replacement, node.layer, node.feature): place
        for place, node in enumerate(graph.nodes)
        if node.kind is NodeKind.FEATURE
    }
    known = [
        features[node.feature.replacement or "neurons", node.feature.layer, node.feature.index]
        for node in circuit.nodes
    ]
    assert len(features) == len(circuit.nodes)
    assert {name for name, _, _ in features} == {"neurons", "heads"}
    metric = next(place for place, node in enumerate(graph.nodes) if node.kind is NodeKind.LOGIT)
    ends = zip(column(graph.edges.source), column(graph.edges.target), strict=True)
    weights = dict(zip(ends, column(graph.edges.weight), strict=True))
    assert weights == pytest.approx(
        {
            (known[edge.source], metric if edge.target < 0 else known[edge.target]): edge.weight
            for edge in circuit.edges
        }
    )
    assert graph.nodes[metric].layer > max(layer for _, layer, _ in features)
    assert graph.target_label == "right less wrong answers"
    assert graph.weight_hash == found().version.weight_hash
    assert [token.display for token in graph.tokens] == ["every position"]


def test_effects_stability_and_what_a_reader_must_know_come_along():
    """As figures, positive if for the answers, in labels and in caveats."""
    graph = read_graph(json.dumps(graph_document(found(), "all")).encode()).circuit
    labels = {node.label for node in graph.nodes}
    for node in found().circuits[0].nodes:
        said = f"effect {node.effect:+.3f}" + ("" if node.stable else ", not stable")
        assert any(label.endswith(said) for label in labels)
    assert any(label.startswith("head ") for label in labels)
    effects = sorted(node.effect for node in graph.nodes if node.kind is NodeKind.FEATURE)
    assert effects == pytest.approx(sorted(-node.effect for node in found().circuits[0].nodes))
    assert any(found().name in said for said in graph.caveats)
    assert set(found().caveats) <= set(graph.caveats)


def test_positions_that_are_kept_stay_apart():
    """Contexts have no tokens in common: positions are numbered."""
    (circuit, *_), places = found().circuits, range(len(found().circuits[0].nodes))
    at = [replace(node, position=place % 3 + 1) for node, place in zip(circuit.nodes, places, strict=True)]
    kept = replace(found(), positions=PositionRule.KEPT, circuits=(replace(circuit, nodes=tuple(at)),))
    graph = read_graph(json.dumps(graph_document(kept, "all")).encode()).circuit
    assert [token.display for token in graph.tokens] == [f"position {place}" for place in range(4)]
    assert sorted(node.position for node in graph.nodes if node.kind is NodeKind.FEATURE) == sorted(
        node.position for node in at
    )


def test_what_there_is_no_graph_of_is_told():
    """A cluster that there is not, and circuits without edges or nodes."""
    with pytest.raises(InvalidRequestError, match="'all', 'cluster 1', 'cluster 2'"):
        graph_document(found(), "cluster 3")
    bare = replace(found(), circuits=(replace(found().circuits[0], edges=()),))
    with pytest.raises(InvalidRequestError, match="has no edges"):
        graph_document(bare, "all")
    empty = replace(found(), circuits=(replace(found().circuits[0], nodes=(), edges=()),))
    with pytest.raises(InvalidRequestError, match="has no nodes"):
        graph_document(empty, "all")
