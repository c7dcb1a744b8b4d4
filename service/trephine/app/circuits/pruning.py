"""The smallest graph that carries a share of the influence.

After Ameisen et al. 2025 (Circuit Tracing, appendix on graph pruning) as in circuit-tracer's
`prune_graph`: nodes first, then edges of the pruned graph, then dangling nodes to a fixpoint. Works on
the sparse edges; no N x N matrix is made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trephine.domain.arrays import Array
from trephine.domain.circuits import Circuit, NodeKind, PrunedNodes
from trephine.domain.errors import CorruptRecordError, InvalidRequestError

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]


def numbers(array: Array) -> NDArray[Any]:
    """View an array's bytes as numpy, without copying; read-only."""
    return np.frombuffer(array.data, dtype=np.dtype(array.dtype).newbyteorder("<")).reshape(array.shape)


def prune(circuit: Circuit, *, node_threshold: float, edge_threshold: float) -> PrunedNodes:
    """Keep the fewest nodes and edges that reach these cumulative shares of the influence.

    Tokens and logits are always kept. A feature needs an edge in and an edge out, an error an edge out;
    where there are neither tokens nor errors a feature needs an edge out alone. Of a global circuit, which
    explains no target, nodes have the influence that it gives them, and whatever has an edge is kept.

    Raises:
        InvalidRequestError: If a threshold is outside (0, 1].
    """
    for field, value in (("node_threshold", node_threshold), ("edge_threshold", edge_threshold)):
        if not 0 < value <= 1:
            raise InvalidRequestError(f"{field} must be in (0, 1], got {value}", field=field)
    graph = _graph_of(circuit)
    influence = graph.influence(np.ones(len(graph.weight), dtype=np.bool_))
    nodes = graph.ends | (influence >= _threshold(influence, node_threshold))
    inside = nodes[graph.source] & nodes[graph.target]
    scores = graph.edge_influence(inside)
    edges = inside & (scores >= _threshold(scores, edge_threshold))
    nodes, edges = graph.without_dangling(nodes, edges)
    return PrunedNodes(
        nodes=tuple(int(index) for index in np.flatnonzero(nodes)),
        edges=tuple(int(index) for index in np.flatnonzero(edges)),
        node_threshold=node_threshold,
        edge_threshold=edge_threshold,
        cumulative=tuple(_cumulative(influence).tolist()),
    )


def without_dangling(circuit: Circuit, nodes: Mask, edges: Mask, *, fixed: Mask) -> tuple[Mask, Mask]:
    """Drop nodes that lead nowhere, or that nothing leads to, until there is none.

    Args:
        circuit: The circuit.
        nodes: bool `(n_nodes,)`, what is kept so far.
        edges: bool `(n_edges,)`, the same, between kept nodes.
        fixed: bool `(n_nodes,)`, nodes that stay beside tokens and targets.
    """
    return _graph_of(circuit).without_dangling(nodes, edges, fixed)


def edge_influence(circuit: Circuit, kept: Mask) -> Floats:
    """Return the share of path mass that runs through each edge `(n_edges,)`, over kept edges alone."""
    return _graph_of(circuit).edge_influence(kept)


class _Graph:
    """A circuit's edges as vectors, and which nodes are of which kind."""

    def __init__(self, circuit: Circuit) -> None:
        self.size = len(circuit.nodes)
        self.source: Indices = numbers(circuit.edges.source).astype(np.int64)
        self.target: Indices = numbers(circuit.edges.target).astype(np.int64)
        self.weight: Floats = np.abs(numbers(circuit.edges.weight).astype(np.float64))
        kinds = np.array([node.kind.value for node in circuit.nodes])
        logits: Mask = kinds == NodeKind.LOGIT.value
        self.feature: Mask = kinds == NodeKind.FEATURE.value
        self.ends: Mask = logits | (kinds == NodeKind.TOKEN.value)
        self.start = _logit_weights(circuit, logits)
        # Where nothing else begins, as in a circuit of a behaviour, a feature needs no edge in.
        self.begins: Mask = ~self.feature if bool((~self.feature & ~logits).any()) else ~logits

    def influence(self, kept: Mask) -> Floats:
        """Share of path mass that each node sends to the logits, over kept edges only `(n_nodes,)`."""
        shares = self._shares(kept)
        total = np.zeros(self.size)
        current = self.start
        for _ in range(self.size + 1):
            mass = current[self.target] * shares
            current = np.bincount(self.source, weights=mass, minlength=self.size).astype(np.float64)
            if not current.any():
                return total
            total += current
        raise CorruptRecordError("the circuit's edges form a cycle; discover it again")

    def edge_influence(self, kept: Mask) -> Floats:
        """Share of path mass that runs through each edge `(n_edges,)`; 0 for edges not kept."""
        through = self.influence(kept) + self.start
        scores: Floats = self._shares(kept) * through[self.target]
        return scores

    def without_dangling(self, nodes: Mask, edges: Mask, fixed: Mask | None = None) -> tuple[Mask, Mask]:
        """Drop what has lost its edges, until nothing more has; `fixed` nodes stay."""
        keep = self.ends if fixed is None else self.ends | fixed
        while True:
            has_out, has_in = np.zeros(self.size, np.bool_), np.zeros(self.size, np.bool_)
            has_out[self.source[edges]] = True
            has_in[self.target[edges]] = True
            left = nodes & (keep | (has_out & (has_in | self.begins)))
            if np.array_equal(left, nodes):
                return nodes, edges
            nodes = left
            edges = edges & nodes[self.source] & nodes[self.target]

    def _shares(self, kept: Mask) -> Floats:
        """Each edge's share of what enters its target over kept edges."""
        weight = np.where(kept, self.weight, 0.0)
        entering = np.bincount(self.target, weights=weight, minlength=self.size)
        shares: Floats = weight / np.maximum(entering[self.target], 1e-10)
        return shares


class _GraphOfTexts(_Graph):
    """Of a global circuit: a node's influence is its share of all edges' strength, whatever it leads to."""

    def __init__(self, circuit: Circuit) -> None:
        super().__init__(circuit)
        self._stored: Floats = np.array([node.influence for node in circuit.nodes], np.float64)
        self.ends = np.zeros(self.size, np.bool_)
        self.start = np.zeros(self.size)

    def influence(self, kept: Mask) -> Floats:
        """Return what is stored: no path mass ends anywhere."""
        return self._stored

    def without_dangling(self, nodes: Mask, edges: Mask, fixed: Mask | None = None) -> tuple[Mask, Mask]:
        """Drop what has no edge left; `fixed` nodes stay."""
        has = np.zeros(self.size, np.bool_)
        has[self.source[edges]] = True
        has[self.target[edges]] = True
        return nodes & (has if fixed is None else has | fixed), edges


def _graph_of(circuit: Circuit) -> _Graph:
    return _Graph(circuit) if circuit.across is None else _GraphOfTexts(circuit)


def _logit_weights(circuit: Circuit, logits: Mask) -> Floats:
    """Where the path mass starts: targets by their share."""
    weights = np.zeros(len(circuit.nodes))
    weights[logits] = [target.share for target in circuit.targets]
    return weights


def _cumulative(influence: Floats) -> Floats:
    """Return the share of the influence of all nodes at least as influential `(n_nodes,)`."""
    order = np.argsort(-influence, kind="stable")
    found = np.zeros(len(influence))
    found[order] = np.cumsum(influence[order]) / max(float(influence.sum()), 1e-30)
    return np.minimum(found, 1.0)


def _threshold(scores: Floats, share: float) -> float:
    """The smallest score that is needed to reach a share of the sum, largest scores first."""
    total = scores.sum()
    if not total:
        return 0.0
    ordered = np.sort(scores)[::-1]
    place = int(np.searchsorted(np.cumsum(ordered) / total, share))
    return float(ordered[min(place, len(ordered) - 1)])
