"""Circuits of behaviours as graphs: what is written is what servers read, and holds what was found."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from functools import cache
from math import isnan
from typing import Any

import jsonschema
import pytest

from tests.unit.app.circuits.test_circuit_files import FOLDER
from tests.unit.client.test_cli_datasets import found as stored
from trephine.app.circuits.circuit_imports import read_graph
from trephine.app.circuits.circuit_pruning import shown_nodes
from trephine.app.circuits.circuits import ListedNode, StoredCircuit
from trephine.app.circuits.group_controls import Places, random_partitions
from trephine.app.circuits.group_measures import partition_of
from trephine.app.circuits.pruning import numbers
from trephine.client.dataset_graphs import graph_document
from trephine.client.decoding import decode
from trephine.client.errors import InvalidRequestError
from trephine.client.node_addresses import address, found_nodes
from trephine.client.types import CircuitInfo, DatasetCircuit, Node, PositionRule
from trephine.domain.arrays import Array
from trephine.domain.circuit_queries import Provenance
from trephine.domain.circuits import Circuit, NodeKind
from trephine.pages.circuit_graphml import circuit_graphml
from trephine.pages.circuit_json import circuit_json
from trephine.rpc.wire.circuits import circuit_to_wire, node_to_wire
from trephine.rpc.wire.dataset_circuits import dataset_circuit_to_wire

IMPORTED = Provenance(origin="imported", how="by trephine")


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
            (known[edge.source], metric if edge.target < 0 else known[edge.target]): -edge.weight
            for edge in circuit.edges
        }
    )
    assert graph.nodes[metric].layer > max(layer for _, layer, _ in features)
    assert graph.target_label == "right less wrong answers"
    assert graph.weight_hash == found().version.weight_hash
    assert [token.display for token in graph.tokens] == ["every position"]


def exported(circuit: Circuit) -> dict[str, Any]:
    """The whole of it, as a server writes it."""
    kept = shown_nodes(circuit, IMPORTED, frozenset())
    return dict(circuit_json(circuit, kept, slug="again"))


def test_effects_edges_and_labels_have_one_sign():
    """Positive is for the answers: what patching a node takes from the metric."""
    circuit = found().circuits[0]
    answers = dataclasses.replace(circuit.nodes[0], effect=-1.5)
    edge = dataclasses.replace(circuit.edges[0], source=0, target=-1, weight=-1.5)
    one = replace(found(), circuits=(replace(circuit, nodes=(answers,), edges=(edge,)),))
    graph = read_graph(json.dumps(graph_document(one, "all")).encode()).circuit
    assert graph.nodes[0].effect == 1.5
    assert column(graph.edges.weight) == [1.5]
    assert "effect +1.500" in graph.nodes[0].label
    assert not any("sign" in said or "negative" in said for said in graph.caveats[2:4])


def test_where_positions_are_summed_nodes_lie_at_none():
    """No position is invented: not for nodes, nor for the target, and not in files that are written of it."""
    document = graph_document(found(), "all")
    for read in (document, exported(read_graph(json.dumps(document).encode()).circuit)):
        jsonschema.validate(read, json.loads((FOLDER / "schema.json").read_text()))
        graph = read_graph(json.dumps(read).encode()).circuit
        assert {node.position for node in graph.nodes} == {-1}
        assert [target.position for target in graph.targets] == [-1]
        assert {node["node_id"] for node in read["nodes"]} == {node["node_id"] for node in document["nodes"]}
    kept = shown_nodes(graph, IMPORTED, frozenset())
    assert b"node_position" not in circuit_graphml(graph, kept, name="circuits/1").split(b"<graph ")[1]


def test_its_target_has_no_probability():
    """A difference of answers over contexts is none, nor 0; files that are written of it say none, too."""
    document = graph_document(found(), "all")
    for read in (document, exported(read_graph(json.dumps(document).encode()).circuit)):
        assert all("token_prob" not in node for node in read["nodes"] if node["is_target_logit"])
        graph = read_graph(json.dumps(read).encode()).circuit
        assert [isnan(node.activation) for node in graph.nodes if node.kind is NodeKind.LOGIT] == [True]


def test_groups_and_their_controls_need_no_positions():
    """Nodes at none are near each other, and controls exchange features with features alone."""
    graph = read_graph(json.dumps(graph_document(found(), "all")).encode()).circuit
    members = [place for place, node in enumerate(graph.nodes) if node.kind is NodeKind.FEATURE][:2]
    target = next(place for place, node in enumerate(graph.nodes) if node.kind is NodeKind.LOGIT)
    partition = partition_of(len(graph.nodes), [members, [target]])
    places, plain = Places(graph, partition), replace_positions(graph, 1)
    for draw in random_partitions(places, partition, draws=5, seed=0):
        assert draw.label[target] == 1
    one, other = (
        [draw.label.tolist() for draw in random_partitions(where, partition, draws=5, seed=0)]
        for where in (places, Places(plain, partition))
    )
    assert one == other


def replace_positions(graph: Circuit, position: int) -> Circuit:
    """The same with every node there."""
    return replace(graph, nodes=tuple(replace(node, position=position) for node in graph.nodes))


def test_addresses_say_all_positions():
    """As they are written and read on the command line."""
    graph = read_graph(json.dumps(graph_document(found(), "all")).encode()).circuit
    info = decode(
        CircuitInfo, circuit_to_wire(StoredCircuit(name="circuits/1", create_time="", circuit=graph))
    )
    nodes = [
        decode(Node, node_to_wire(ListedNode(index=place, node=one, bias=None, remainder=None, total=None)))
        for place, one in enumerate(graph.nodes)
    ]
    heads = [node for node in nodes if node.feature and node.feature.replacement == "heads"]
    written = [address(node, info.set_names) for node in heads]
    assert written
    assert all(text.startswith("heads:") and text.endswith("@all") for text in written)
    assert found_nodes(info, nodes, written) == tuple(node.index for node in heads)
    with pytest.raises(InvalidRequestError, match="has no node"):
        found_nodes(info, nodes, [written[0].replace("@all", "@0")])


def test_effects_stability_and_what_a_reader_must_know_come_along():
    """As figures, positive if for the answers, in labels and in caveats."""
    graph = read_graph(json.dumps(graph_document(found(), "all")).encode()).circuit
    labels = {node.label for node in graph.nodes}
    for node in found().circuits[0].nodes:
        said = f"effect {-node.effect:+.3f}" + ("" if node.stable else ", not stable")
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
    assert [target.position for target in graph.targets] == [
        -1
    ]  # the end of contexts, whatever nodes there are


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
