"""Error nodes of circuits over sets with dictionaries elsewhere than on MLPs: two sites a layer, two ids."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import pytest

from tests.builders import tiny_hosted
from tests.resident_sets import resident_set
from trephine.app.circuits.circuit_diff import compare
from trephine.app.circuits.circuit_imports import read_graph
from trephine.app.circuits.pruning import prune
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuit_annotations import Annotations, NodeLabel, NodePin
from trephine.domain.circuits import Circuit, DiscoverCircuit, NodeKind
from trephine.domain.error_sites import ERROR_SITES, error_number, error_site, numbered
from trephine.domain.sites import SiteKind
from trephine.engine.graphs.discover import discover_circuit
from trephine.engine.models.quanta import finish
from trephine.pages.circuit_annotations import annotations_document, identities, read_document
from trephine.pages.circuit_json import circuit_json, node_ids

KINDS = ("attn_out", "resid_post", "mixed")


@cache
def found(kind: str) -> Circuit:
    """A circuit over a set of some kind."""
    hosted = tiny_hosted("llama")
    command = DiscoverCircuit(
        prompt="When Mary went to the store John gave a drink to",
        target=LogitTarget(token=" Mary", against=" John"),
        replacement=resident_set(hosted, kind),
        max_feature_nodes=30,
        verify_nodes=0,
    )
    return finish(discover_circuit(hosted, command))


def document_of(graph: Circuit) -> bytes:
    """Its JSON with every node and edge."""
    kept = prune(graph, node_threshold=1.0, edge_threshold=1.0)
    return json.dumps(circuit_json(graph, kept, slug="x")).encode()


def errors_of(graph: Circuit) -> list[int]:
    """Indices of its error nodes."""
    return [index for index, node in enumerate(graph.nodes) if node.kind is NodeKind.ERROR]


def test_every_site_has_a_number_and_the_known_ones_keep_theirs():
    """-1 is the MLP's, as other tools have it; numbers are stored, and therefore never move."""
    assert set(ERROR_SITES) == set(SiteKind)
    known = (SiteKind.MLP_OUT, SiteKind.ATTN_OUT, SiteKind.RESID_POST)
    assert [error_number(kind) for kind in known] == [-1, -2, -3]
    graph = found("attn_out")
    assert {error_site(graph.nodes[one]) for one in errors_of(graph)} == set(known[:2])
    assert {error_site(node) for node in graph.nodes if node.kind is not NodeKind.ERROR} == {None}


@pytest.mark.parametrize("kind", KINDS)
def test_every_node_has_an_id_of_its_own(kind: str):
    """The MLP's error keeps the id that other tools know; no viewer's id is there twice either."""
    graph = found(kind)
    ids = node_ids(graph)
    assert len(set(ids)) == len(ids)
    nodes = json.loads(document_of(graph))["nodes"]
    errors = [node for node in nodes if node["feature_type"] == "mlp reconstruction error"]
    assert len({node["jsNodeId"] for node in errors}) == len(errors)
    assert {node["feature"] for node in errors} == {-1}
    mlps = [one for one in errors_of(graph) if error_site(graph.nodes[one]) is SiteKind.MLP_OUT]
    others = set(errors_of(graph)) - set(mlps)
    assert others
    for one in mlps:
        node = graph.nodes[one]
        assert ids[one] == f"{node.layer}_-1_{node.position}"
    for one in others:
        assert graph.nodes[one].label.startswith(f"error of {error_site(graph.nodes[one])} ")


def test_a_set_on_mlps_has_the_ids_that_other_tools_read():
    """One error site a layer: nothing is changed for it."""
    graph = found("relu")
    ids = node_ids(graph)
    for one in errors_of(graph):
        assert ids[one] == f"{graph.nodes[one].layer}_-1_{graph.nodes[one].position}"


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_is_imported_whole(kind: str):
    """Every node and every link comes back, and writing it again changes nothing."""
    document = document_of(found(kind))
    again = read_graph(document).circuit
    written = json.loads(document)
    assert (len(again.nodes), again.edges.weight.shape[0]) == (len(written["nodes"]), len(written["links"]))
    ours, theirs = (
        {(one["source"], one["target"]): one["weight"] for one in each["links"]}
        for each in (json.loads(document_of(again)), written)
    )
    assert ours == pytest.approx(theirs)
    sites = {(n.layer, n.position, error_site(n)) for n in again.nodes if n.kind is NodeKind.ERROR}
    kept = {node["node_id"] for node in written["nodes"]}
    graph = found(kind)
    ids = node_ids(graph)
    expected = (graph.nodes[one] for one in errors_of(graph) if ids[one] in kept)
    assert sites == {(n.layer, n.position, error_site(n)) for n in expected}


@pytest.mark.parametrize("kind", KINDS)
def test_pins_and_labels_come_back_to_their_own_nodes(kind: str):
    """Of every error node, whichever site it is of."""
    graph = found(kind)
    said = Annotations(
        pins=tuple(NodePin(node=one, author="", create_time="t") for one in errors_of(graph)),
        labels=tuple(
            NodeLabel(node=one, text=f"n{one}", author="", create_time="t") for one in errors_of(graph)
        ),
    )
    back, skipped = read_document(annotations_document(graph, said), identities(graph), author="", now="t")
    assert (back, skipped) == (said, ())


def test_older_ids_are_read_where_they_are_not_the_mlps():
    """`{layer}_-1_{position}` and `0_{layer}_{position}` stood for every site; the MLP's comes first."""
    graph = found("attn_out")
    attention = next(
        node for node in graph.nodes if error_site(node) is SiteKind.ATTN_OUT and node.layer == 2
    )
    alone = replace(graph, nodes=(attention,))
    older = (f"2_-1_{attention.position}", f"0_2_{attention.position}")
    assert [identities(alone)[one] for one in older] == [0, 0]
    mlp = replace(attention, feature=-1)
    both = replace(graph, nodes=(attention, mlp))
    assert [identities(both)[one] for one in older] == [1, 1]
    assert identities(both)[f"2_-2_{attention.position}"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_circuit_over_such_a_set_does_not_differ_from_itself(kind: str):
    """Every node is compared with itself alone."""
    graph = found(kind)
    compared = compare(graph, graph, sum_positions=False)
    assert len(compared.nodes) == len(graph.nodes)


def test_circuits_that_were_stored_with_one_number_are_numbered_by_their_labels():
    """As those of today; what has a number keeps it, and no two nodes get one address."""
    graph = found("mixed")
    errors = set(errors_of(graph))
    old = tuple(
        replace(node, feature=-1) if index in errors else node for index, node in enumerate(graph.nodes)
    )
    assert numbered(old) == graph.nodes
    assert numbered(graph.nodes) == graph.nodes
    second = next(node for node in graph.nodes if node.kind is NodeKind.ERROR and node.feature < -1)
    called_like_it = replace(second, feature=-1)
    assert numbered((second, called_like_it)) == (second, called_like_it)
