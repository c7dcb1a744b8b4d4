"""Circuits over several sets as files: ids that no two nodes share, and that come back."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import jsonschema
import networkx
import pytest

from tests.circuits_of_sets import ATTENTION, MLPS, circuit_of_sets, feature
from tests.synthetic_circuits import whole
from tests.unit.app.circuits.test_circuit_files import document_of, links
from trephine.app.circuits.circuit_imports import read_graph
from trephine.domain.circuit_annotations import Annotations, NodeLabel, NodePin
from trephine.domain.circuits import NodeKind
from trephine.domain.errors import InvalidRequestError
from trephine.domain.sites import FeatureRef
from trephine.pages.circuit_annotations import annotations_document, identities, read_document
from trephine.pages.circuit_data import page_data
from trephine.pages.circuit_graphml import circuit_graphml
from trephine.pages.circuit_json import circuit_json, node_ids

SCHEMA = json.loads((Path(__file__).parents[3] / "fixtures" / "circuit_tracer" / "schema.json").read_bytes())


def test_ids_are_unique_and_those_of_the_first_set_are_what_other_tools_read():
    """One layer, index and position in two sets: two ids, two numbers of features, two ids of a viewer."""
    graph = circuit_of_sets()
    assert node_ids(graph)[:3] == ["0_5_0", "0_5_0_1", "1_2_0"]
    document = document_of(graph)
    jsonschema.validate(document, SCHEMA)
    first, beside, _ = document["nodes"][:3]
    assert (first["feature"], first["jsNodeId"]) == (20, "0_5-0")
    assert (beside["feature"], beside["jsNodeId"]) == (-22, "0_5_1-0")
    assert document["metadata"]["scan"] == f"tiny/{MLPS}+{ATTENTION}"
    told = document["metadata"]["info"]["sets"]
    assert [(one["name"], one["content_hash"]) for one in told] == [(MLPS, "c" * 64), (ATTENTION, "a" * 64)]


def test_numbers_of_features_are_unique_over_all_sets_and_layers():
    """A viewer tells features apart by them, and an error's is -1."""
    names = (MLPS, ATTENTION, "neurons")
    graph = circuit_of_sets()
    more = tuple(feature(name, layer, index) for name in names for layer in range(9) for index in range(30))
    beside = (*graph.beside, replace(graph.beside[0], name="neurons", content_hash=""))
    first = len(graph.nodes)
    larger = replace(graph, nodes=(*graph.nodes, *more), beside=beside)
    kept = replace(whole(larger), nodes=tuple(range(first, first + len(more))), edges=())
    document = circuit_json(larger, kept, slug="x")
    numbers = [node["feature"] for node in document["nodes"]]
    assert len(set(numbers)) == len(numbers) == 810
    assert -1 not in numbers


def test_an_export_over_sets_is_imported_whole():
    """Every feature comes back to its own set, links and ids are the same, and writing it again too."""
    document = document_of(circuit_of_sets())
    again = read_graph(json.dumps(document).encode()).circuit
    assert again.set_names == (MLPS, ATTENTION)
    assert again.set_is_unknown
    features = {(n.replacement, n.layer, n.feature) for n in again.nodes if n.kind is NodeKind.FEATURE}
    assert features == {(MLPS, 0, 5), (ATTENTION, 0, 5), (MLPS, 1, 2)}
    assert links(document_of(again)) == links(document)


@pytest.mark.parametrize("place", ["2", "0", "x"])
def test_a_set_that_a_file_does_not_name_is_refused(place):
    """The error says which node."""
    text = json.dumps(document_of(circuit_of_sets())).replace("0_5_0_1", f"0_5_0_{place}")
    with pytest.raises(InvalidRequestError, match=f"0_5_0_{place}"):
        read_graph(text.encode())


def test_pins_and_labels_come_back_to_the_feature_of_their_set():
    """Of two features with one layer, index and position each keeps what was said of it."""
    graph = circuit_of_sets()
    said = Annotations(
        pins=(NodePin(node=1, author="", create_time="t"),),
        labels=tuple(NodeLabel(node=n, text=f"n{n}", author="", create_time="t") for n in (0, 1)),
    )
    back, skipped = read_document(annotations_document(graph, said), identities(graph), author="", now="t")
    assert (back, skipped) == (said, ())


def test_graphml_names_the_sets_and_every_nodes_own():
    """Both features of one layer and index are nodes, told apart by their set."""
    graph = circuit_of_sets()
    read = networkx.read_graphml(BytesIO(circuit_graphml(graph, whole(graph), name="circuits/1")))
    assert read.graph["replacement"] == f"{MLPS}+{ATTENTION}"
    assert len(read) == len(graph.nodes)
    features = {node: data for node, data in read.nodes(data=True) if data["kind"] == "feature"}
    assert {node: data["replacement"] for node, data in features.items()} == {
        "0_5_0": MLPS, "0_5_0_1": ATTENTION, "1_2_0": MLPS,
    }  # fmt: skip


def test_a_page_links_a_feature_to_the_page_of_its_own_set():
    """The feature of the other set with that layer and index has none."""
    graph = circuit_of_sets()
    page = FeatureRef(replacement=ATTENTION, layer=0, index=5)
    data = page_data(graph, whole(graph), name="circuits/1", pages=[page])
    assert data["sets"] == [MLPS, ATTENTION]
    assert data["pages"] == {"1": f"{ATTENTION}-0-5.html"}
