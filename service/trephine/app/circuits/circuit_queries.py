"""Subgraphs of a stored circuit: around a node, and between two. Works on edges as vectors.

A circuit is acyclic. Its nodes are put into levels (longest path from a source), so that everything about
paths is one pass over the levels, whatever the number of paths: at 500,000 edges the loops below turn once
a level, never once an edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from trephine.app.circuits.pruning import numbers
from trephine.domain.circuit_queries import Around, Between, CircuitPath
from trephine.domain.circuits import Circuit, NodeKind
from trephine.domain.errors import CorruptRecordError, InvalidRequestError, NothingMatchedError

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]

MOST_PATHS = 100
"""Strongest paths that can be asked for at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subgraph:
    """A part of a circuit, as indices into the circuit's nodes and edges, ascending."""

    asked: tuple[int, ...]
    """The nodes that were asked about."""
    nodes: Indices
    edges: Indices
    paths: tuple[CircuitPath, ...] = ()
    """The strongest first; of `Between` only."""
    n_paths: float = 0.0
    """How many paths there are, listed or not; exact up to 2^53."""
    share: float = 0.0
    """Signed shares of all paths, added up."""
    absolute_share: float = 0.0
    """Absolute shares of all paths, added up: what the listed ones can be compared with."""

    def largest(self, circuit: Circuit, count: int) -> tuple[Indices, Indices]:
        """Return the nodes asked about and its most influential ones, and the edges between, heaviest first.

        Together these nodes are at most `count`, or those asked about alone.
        """
        influence = np.array([circuit.nodes[node].influence for node in self.nodes.tolist()])
        asked = np.isin(self.nodes, self.asked)
        nodes = self.nodes[np.lexsort((-influence, ~asked))[: max(count, len(self.asked))]]
        shown = np.zeros(len(circuit.nodes), np.bool_)
        shown[nodes] = True
        ends = numbers(circuit.edges.source)[self.edges], numbers(circuit.edges.target)[self.edges]
        edges = self.edges[shown[ends[0]] & shown[ends[1]]]
        weight = np.abs(numbers(circuit.edges.weight)[edges])
        return nodes, edges[np.argsort(-weight, kind="stable")]


def query(circuit: Circuit, question: Around | Between) -> Subgraph:
    """Return the part of a circuit that is asked for.

    Raises:
        InvalidRequestError: If a node does not exist, or a depth, weight or count is out of its domain.
        NothingMatchedError: If nothing is connected; the message says what would help.
    """
    for field, node in _ends(question):
        require_node(circuit, node, field)
    if not question.min_weight >= 0:
        raise InvalidRequestError(
            f"min_weight must not be negative, got {question.min_weight}", field="min_weight"
        )
    graph = Wiring(circuit)
    return _around(graph, question) if isinstance(question, Around) else _between(graph, question)


def require_node(circuit: Circuit, node: int, field: str) -> int:
    """Return a node that exists.

    Raises:
        InvalidRequestError: If there is none of that index.
    """
    if not 0 <= node < len(circuit.nodes):
        raise InvalidRequestError(
            f"there is no node {node}: the circuit has nodes 0 to {len(circuit.nodes) - 1}", field=field
        )
    return node


class Wiring:
    """A circuit's edges as vectors, with everything that paths need."""

    def __init__(self, circuit: Circuit) -> None:
        self.circuit = circuit
        self.size = len(circuit.nodes)
        self.source: Indices = numbers(circuit.edges.source).astype(np.int64)
        self.target: Indices = numbers(circuit.edges.target).astype(np.int64)
        self.weight: Floats = numbers(circuit.edges.weight).astype(np.float64)

    @cached_property
    def shares(self) -> Floats:
        """Each edge's signed share of what enters its target over kept edges `(n_edges,)`."""
        entering = np.bincount(self.target, weights=np.abs(self.weight), minlength=self.size)
        shares: Floats = self.weight / np.maximum(entering[self.target], 1e-30)
        return shares

    @cached_property
    def activations(self) -> Floats:
        """Every node's activation `(n_nodes,)`; NaN where an imported circuit does not say it."""
        return np.array([node.activation for node in self.circuit.nodes])

    def heavy(self, min_weight: float) -> Mask:
        """Edges of at least an absolute weight `(n_edges,)`."""
        heavy: Mask = np.abs(self.weight) >= min_weight
        return heavy

    def reach(self, start: int, edges: Mask, *, forward: bool) -> Mask:
        """Nodes that are reached from a node along, or against, some edges; the node itself is one."""
        reached: Mask = self.distance(start, edges, forward=forward) >= 0
        return reached

    def distance(self, start: int, edges: Mask, *, forward: bool, steps: int | None = None) -> Indices:
        """The fewest steps along, or against, edges from a node `(n_nodes,)`; -1 where more than `steps`."""
        near, far = (self.source, self.target) if forward else (self.target, self.source)
        near, far = near[edges], far[edges]
        distance = np.full(self.size, -1, np.int64)
        distance[start], taken = 0, 0
        while (frontier := distance == taken).any() and (steps is None or taken < steps):
            step = np.zeros(self.size, np.bool_)
            step[far[frontier[near]]] = True
            taken += 1
            distance[step & (distance < 0)] = taken
        return distance

    def levels(self, edges: Mask) -> Indices:
        """The longest number of steps that leads to each node `(n_nodes,)`.

        Raises:
            CorruptRecordError: If the edges form a cycle.
        """
        source, target = self.source[edges], self.target[edges]
        level = np.zeros(self.size, np.int64)
        for _ in range(self.size + 1):
            after = level.copy()
            np.maximum.at(after, target, level[source] + 1)
            if np.array_equal(after, level):
                return level
            level = after
        raise CorruptRecordError("the circuit's edges form a cycle; discover it again")


def influence_of(graph: Wiring) -> Floats:
    """Share of path mass that each node sends to the targets over kept edges `(n_nodes,)`.

    Targets weigh by their shares (Ameisen et al. 2025).

    Raises:
        CorruptRecordError: If the edges form a cycle.
    """
    through: Floats = np.zeros(graph.size)
    is_target = np.array([node.kind is NodeKind.LOGIT for node in graph.circuit.nodes])
    through[is_target] = [target.share for target in graph.circuit.targets]
    through /= max(through.sum(), 1e-30)
    start = through.copy()
    every = np.ones(len(graph.weight), np.bool_)
    level = graph.levels(every)[graph.target]
    for edges in reversed(_split(np.arange(len(level)), level)):
        np.add.at(through, graph.source[edges], through[graph.target[edges]] * np.abs(graph.shares[edges]))
    influence: Floats = through - start
    return influence


def _ends(question: Around | Between) -> tuple[tuple[str, int], ...]:
    if isinstance(question, Around):
        return (("around.node", question.node),)
    return ("between.source", question.source), ("between.target", question.target)


# --- around a node --------------------------------------------------------------------------------


def _around(graph: Wiring, question: Around) -> Subgraph:
    for field in ("ancestors", "descendants"):
        if getattr(question, field) < 0:
            raise InvalidRequestError(f"{field} must not be negative", field=f"around.{field}")
    if not question.ancestors + question.descendants:
        raise InvalidRequestError(
            "ancestors and descendants are both 0: nothing is around the node", field="around.ancestors"
        )
    heavy = graph.heavy(question.min_weight)
    above = graph.distance(question.node, heavy, forward=False, steps=question.ancestors)
    below = graph.distance(question.node, heavy, forward=True, steps=question.descendants)
    # On a walk of so many steps to the node are the edges whose target has a step to spare, and likewise from
    # it: edges past the node, and between what is only just reached, say nothing about it.
    inside = heavy & (
        _within(above[graph.target], question.ancestors) | _within(below[graph.source], question.descendants)
    )
    if not inside.any():
        raise NothingMatchedError(_why_alone(graph, question))
    nodes = np.flatnonzero((above >= 0) | (below >= 0))
    return Subgraph(asked=(question.node,), nodes=nodes, edges=np.flatnonzero(inside))


def _within(distance: Indices, steps: int) -> Mask:
    within: Mask = (distance >= 0) & (distance < steps)
    return within


def _inside(graph: Wiring, nodes: Mask) -> Mask:
    inside: Mask = nodes[graph.source] & nodes[graph.target]
    return inside


def _why_alone(graph: Wiring, question: Around) -> str:
    touching = (graph.target == question.node) & (question.ancestors > 0)
    touching |= (graph.source == question.node) & (question.descendants > 0)
    name = _name(graph, question.node)
    if touching.any():
        largest = float(np.abs(graph.weight[touching]).max())
        return f"every edge at {name} is lighter than {question.min_weight:g}; the heaviest has {largest:.3g}"
    return f"no kept edge leads to or from {name} in the directions asked for"


# --- between two nodes ----------------------------------------------------------------------------


def _between(graph: Wiring, question: Between) -> Subgraph:
    if not 0 <= question.paths <= MOST_PATHS:
        raise InvalidRequestError(
            f"paths must be from 0 to {MOST_PATHS}, got {question.paths}", field="between.paths"
        )
    if question.source == question.target:
        raise InvalidRequestError("source and target are the same node", field="between.target")
    inside, nodes = _connecting(graph, question, question.min_weight)
    if not inside.any():
        raise NothingMatchedError(_why_apart(graph, question))
    edges = np.flatnonzero(inside)
    levels = graph.levels(inside)
    by_level = _split(edges, levels[graph.target[edges]])
    count = _accumulate(graph, by_level, question, np.ones(len(graph.weight)))
    return Subgraph(
        asked=(question.source, question.target),
        nodes=np.flatnonzero(nodes),
        edges=edges,
        paths=_strongest(graph, by_level, question) if question.paths else (),
        n_paths=count,
        share=_accumulate(graph, by_level, question, graph.shares),
        absolute_share=_accumulate(graph, by_level, question, np.abs(graph.shares)),
    )


def _connecting(graph: Wiring, question: Between, min_weight: float) -> tuple[Mask, Mask]:
    """Edges and nodes on any path from the source to the target."""
    heavy = graph.heavy(min_weight)
    nodes = graph.reach(question.source, heavy, forward=True)
    nodes &= graph.reach(question.target, heavy, forward=False)
    return heavy & _inside(graph, nodes), nodes


def _why_apart(graph: Wiring, question: Between) -> str:
    source, target = _name(graph, question.source), _name(graph, question.target)
    said = f"no path of kept edges leads from {source} to {target}"
    if question.min_weight and _connecting(graph, question, 0.0)[0].any():
        return f"{said} over edges of at least {question.min_weight:g}; a smaller min_weight finds one"
    backwards = Between(source=question.target, target=question.source)
    if _connecting(graph, backwards, 0.0)[0].any():
        return f"{said}; there is one the other way round"
    return said


def _split(edges: Indices, level: Indices) -> list[Indices]:
    """Edges by the level of the node that they enter, lowest first."""
    order = np.argsort(level, kind="stable")
    starts = np.flatnonzero(np.diff(level[order])) + 1
    return list(np.split(edges[order], starts))


def _accumulate(graph: Wiring, by_level: list[Indices], question: Between, factor: Floats) -> float:
    """Sum, over all paths, of the product of their edges' factors."""
    mass = np.zeros(graph.size)
    mass[question.source] = 1.0
    for edges in by_level:
        np.add.at(mass, graph.target[edges], mass[graph.source[edges]] * factor[edges])
    return float(mass[question.target])


def _strongest(graph: Wiring, by_level: list[Indices], question: Between) -> tuple[CircuitPath, ...]:
    """The paths of the largest absolute share, by dynamic programming: every node keeps its best few."""
    count = question.paths
    best = np.full((graph.size, count), -np.inf)
    """Log of the absolute share of the best paths from the source, best first."""
    edge = np.full((graph.size, count), -1, np.int64)
    rank = np.zeros((graph.size, count), np.int64)
    best[question.source, 0] = 0.0
    with np.errstate(divide="ignore"):
        logs = np.log(np.abs(graph.shares))
    for edges in by_level:
        scores = (best[graph.source[edges]] + logs[edges, None]).ravel()
        entered, through = np.repeat(graph.target[edges], count), np.repeat(edges, count)
        ranks = np.tile(np.arange(count), len(edges))
        order = np.lexsort((ranks, through, -scores, entered))
        order = order[np.isfinite(scores[order])]
        place = _places(entered[order])
        order, place = order[place < count], place[place < count]
        nodes = entered[order]
        best[nodes, place], edge[nodes, place], rank[nodes, place] = (
            scores[order],
            through[order],
            ranks[order],
        )
    found = range(int(np.isfinite(best[question.target]).sum()))
    return tuple(_path(graph, question, edge, rank, place) for place in found)


def _places(groups: Indices) -> Indices:
    """Each element's place inside its run of equal values."""
    if not len(groups):
        return groups
    first = np.flatnonzero(np.concatenate(([True], groups[1:] != groups[:-1])))
    lengths = np.diff(np.append(first, len(groups)))
    return np.arange(len(groups)) - np.repeat(first, lengths)


def _path(graph: Wiring, question: Between, edge: Indices, rank: Indices, place: int) -> CircuitPath:
    """Walk one of the best paths back to the source."""
    node, walked = question.target, []
    while node != question.source:
        chosen = int(edge[node, place])
        walked.append(chosen)
        place, node = int(rank[node, place]), int(graph.source[chosen])
    edges = np.array(walked[::-1])
    # A weight is what all of its source's activation does, what a constant of the encoder is in it included.
    weights, activations = graph.weight[edges], graph.activations[graph.target[edges[:-1]]]
    known = bool(np.isfinite(activations).all() and activations.all())
    return CircuitPath(
        nodes=(question.source, *graph.target[edges].tolist()),
        weights=tuple(weights.tolist()),
        share=float(graph.shares[edges].prod()),
        contribution=float((weights[1:] / activations).prod() * weights[0]) if known else None,
    )


def _name(graph: Wiring, node: int) -> str:
    return f"node {node} ({graph.circuit.nodes[node].label or graph.circuit.nodes[node].kind.value})"
