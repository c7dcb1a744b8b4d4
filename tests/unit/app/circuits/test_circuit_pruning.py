"""Budgets of pruning: edges by what they carry, rows that still sum, pinned nodes with their edges."""

from __future__ import annotations

import numpy as np
import pytest

from tests.layered_circuits import layered
from tests.unit.app.house import circuit, node
from trephine.app.circuits.circuit_pruning import kept_nodes, pruned_at_once
from trephine.app.circuits.pruning import edge_influence, numbers
from trephine.domain.circuit_queries import Pruning
from trephine.domain.circuits import NodeKind
from trephine.domain.errors import InvalidRequestError

EVERYTHING = Pruning(node_threshold=1.0, edge_threshold=1.0)


@pytest.mark.parametrize("budget", [6, 40])
def test_an_edge_budget_keeps_the_edges_that_carry_most_and_lead_somewhere(budget):
    """As many as fit; whatever carries more than a kept edge and is not kept would dangle."""
    circuit = layered()
    everything = kept_nodes(circuit, EVERYTHING, frozenset())
    kept = kept_nodes(circuit, Pruning(node_threshold=1.0, edge_threshold=1.0, max_edges=budget), frozenset())
    inside = np.zeros(circuit.edges.weight.shape[0], np.bool_)
    inside[list(everything.edges)] = True
    carried = edge_influence(circuit, inside)
    source, target = numbers(circuit.edges.source), numbers(circuit.edges.target)
    assert 0.5 * budget < len(kept.edges) <= budget < len(everything.edges)
    weakest, nodes = min(carried[list(kept.edges)]), set(kept.nodes)
    for edge in set(everything.edges) - set(kept.edges):
        if carried[edge] > weakest:
            assert source[edge] not in nodes or target[edge] not in nodes
    out_of, into = {source[edge] for edge in kept.edges}, {target[edge] for edge in kept.edges}
    for number in kept.nodes:
        kind = circuit.nodes[number].kind
        assert kind in (NodeKind.TOKEN, NodeKind.LOGIT) or number in out_of
        assert kind is not NodeKind.FEATURE or number in into


def test_edges_of_pinned_nodes_come_on_top():
    """A pinned node keeps every edge to and from nodes that stay, beside the budget."""
    circuit = layered()
    weakest = min(
        (n for n, node in enumerate(circuit.nodes) if node.kind is NodeKind.FEATURE),
        key=lambda n: circuit.nodes[n].influence,
    )
    bounds = Pruning(node_threshold=1.0, edge_threshold=1.0, max_edges=4)
    kept = kept_nodes(circuit, bounds, frozenset({weakest}))
    source, target = numbers(circuit.edges.source), numbers(circuit.edges.target)
    own = [edge for edge in kept.edges if weakest in (source[edge], target[edge])]
    assert weakest in kept.nodes
    assert own
    assert len(kept.edges) - len(own) <= 4


def test_a_budget_below_one_is_refused_by_name():
    """The field is named."""
    with pytest.raises(InvalidRequestError, match="max_edges"):
        kept_nodes(layered(), Pruning(max_edges=0), frozenset())


def test_pruned_at_once_rows_sum_and_a_note_says_what_is_gone():
    """Kept edges, bias and remainder sum to every row's total; the note counts nodes and edges."""
    circuit = layered()
    smaller = pruned_at_once(circuit, Pruning(node_threshold=0.6, edge_threshold=0.9, max_edges=12))
    rows, edges = smaller.rows, smaller.edges
    entering = np.bincount(
        numbers(edges.target), weights=numbers(edges.weight).astype(float), minlength=len(smaller.nodes)
    )
    target = numbers(rows.target)
    parts = entering[target] + numbers(rows.bias) + numbers(rows.remainder)
    assert parts == pytest.approx(numbers(rows.total), abs=1e-4)
    assert edges.weight.shape[0] <= 12
    assert smaller.caveats[-1].startswith(
        "Pruned when it was found (node threshold 0.6, edge threshold 0.9, at"
    )
    assert f"{len(smaller.nodes)} of {len(circuit.nodes)} nodes" in smaller.caveats[-1]


def test_where_nothing_but_features_begins_they_need_no_edge_in():
    """Of a behaviour's circuit, whose contexts have no tokens in common: the lowest feature is a source."""
    nodes = [node(NodeKind.FEATURE), node(NodeKind.FEATURE, layer=1), node(NodeKind.LOGIT, layer=2)]
    graph = circuit(nodes, [(0, 1, 1.0), (1, 2, 3.0)])
    kept = kept_nodes(graph, Pruning(node_threshold=0.9, edge_threshold=1.0), frozenset())
    assert (kept.nodes, kept.edges) == ((0, 1, 2), (0, 1))
    rooted = circuit([*nodes, node(NodeKind.TOKEN, layer=-1)], [(0, 1, 1.0), (1, 2, 3.0), (3, 2, 1.0)])
    left = kept_nodes(rooted, Pruning(node_threshold=1.0, edge_threshold=1.0), frozenset())
    assert left.nodes == (2, 3)
