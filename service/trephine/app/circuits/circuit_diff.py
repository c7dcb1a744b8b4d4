"""What two circuits have in common, and what is different. Works on keys as vectors.

Nodes are the same if they have the same kind, layer, feature (of the same set) and position; or the same
without the position, when positions are summed, as is needed for prompts that do not line up. Edges are the
same if their ends are. Sets are the same if both their names and their contents are; the name alone counts
where either circuit does not say what the set of that name held. Targets are the same if they are one token
held against one other; one feature of the same layer and set; one direction, to the last number, at the same
place; or the score of one head (and key, where positions are not summed). Where a circuit does not say what
was asked, as those of other tools, tokens have to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from trephine.app.circuits.pruning import numbers
from trephine.domain.circuits import Circuit, Node, NodeKind
from trephine.domain.findings import Figure
from trephine.domain.sites import NEURONS
from trephine.domain.targets import AttentionScore, DirectionValue, ExplainedTarget, FeatureValue

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSide:
    """A node in one of the circuits; sums over positions where these are summed."""

    node: int
    """Index; where positions are summed, of the most influential."""
    count: int
    """How many nodes it stands for."""
    activation: float
    influence: float
    effect: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedNode:
    """A node of either circuit. A missing side means that the other circuit alone has it."""

    node: Node
    """As the first circuit that has it shows it."""
    first: NodeSide | None
    second: NodeSide | None

    @property
    def change(self) -> float:
        """Influence in the second less that in the first."""
        return _influence(self.second) - _influence(self.first)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedEdge:
    """An edge of either circuit, between places in the list of compared nodes."""

    source: int
    target: int
    first: float | None
    """Its weight, None if the circuit does not have it."""
    second: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitDiff:
    """Nodes by absolute change of influence, edges by absolute change of weight, largest first."""

    nodes: tuple[ComparedNode, ...]
    edges: Sequence[ComparedEdge]
    figures: tuple[tuple[Figure, Figure], ...]
    """The same figure of the first and of the second."""
    overlap: tuple[Figure, ...]
    """How alike they are."""


def compare(first: Circuit, second: Circuit, *, sum_positions: bool) -> CircuitDiff:
    """Return the difference of two circuits."""
    numbering: dict[tuple[object, ...], int] = {}
    by_name, told = frozenset(by_name_alone(first, second)), _both_say(first, second)
    sides = [
        _Side(circuit, numbering, sum_positions, by_name=by_name, told=told) for circuit in (first, second)
    ]
    a, b = (side.nodes(len(numbering)) for side in sides)
    compared = [_compared(sides, x, y) for x, y in zip(a, b, strict=True)]
    order = sorted(range(len(compared)), key=lambda key: (-abs(compared[key].change), key))
    place = np.empty(len(compared), np.int64)
    place[order] = np.arange(len(compared))
    edges = _edges(sides, place)
    return CircuitDiff(
        nodes=tuple(compared[key] for key in order),
        edges=edges,
        figures=_figures(first, second),
        overlap=_overlap(compared, edges),
    )


def by_name_alone(first: Circuit, second: Circuit) -> tuple[str, ...]:
    """Return names of sets that both circuits span, without both saying what these held."""
    unknown = {
        each.name
        for circuit in (first, second)
        for each in circuit.sets
        if each.name != NEURONS and not each.content_hash
    }
    return tuple(name for name in first.set_names if name in unknown and name in second.set_names)


def same_targets(first: Circuit, second: Circuit) -> bool:
    """Say whether both explain the same; by what people are told where either does not say what was asked."""
    if not _both_say(first, second):
        return first.target_label == second.target_label
    by_name = frozenset(by_name_alone(first, second))
    one, other = (
        {
            (read, target.position)
            for read, target in zip(_reads(circuit, by_name, told=True), circuit.targets, strict=True)
        }
        for circuit in (first, second)
    )
    return one == other


def _both_say(first: Circuit, second: Circuit) -> bool:
    return first.asked is not None and second.asked is not None


def _contents(circuit: Circuit, by_name: frozenset[str]) -> dict[str, str]:
    return {each.name: each.content_hash for each in circuit.sets if each.name not in by_name}


def _reads(
    circuit: Circuit, by_name: frozenset[str], *, told: bool, summed: bool = False
) -> list[tuple[object, ...]]:
    """Say what targets are, beside their positions.

    Args:
        circuit: The circuit.
        by_name: Sets that are told apart by their names alone.
        told: Whether what was asked may count: not where the other circuit does not say it.
        summed: Whether positions are summed; a head's key is one.
    """
    content, found = _contents(circuit, by_name), []
    for target in circuit.targets:
        tokens = [None if token is None else token.id for token in (target.token, target.against)]
        detail = _detail(circuit, target, content, summed) if told else ()
        found.append((target.kind, *tokens, *detail))
    return found


def _detail(
    circuit: Circuit, target: ExplainedTarget, content: Mapping[str, str], summed: bool
) -> tuple[object, ...]:
    match circuit.asked:
        case FeatureValue() as asked:
            name = target.replacement or asked.replacement or circuit.replacement
            return asked.layer, asked.index, name, content.get(name, "")
        case DirectionValue() as asked:
            return asked.site.kind, asked.site.layer, asked.vector
        case AttentionScore() as asked:
            return asked.layer, asked.head, None if summed else asked.key
        case _:
            return ()


class EdgeChanges(Sequence[ComparedEdge]):
    """Compared edges in order, made into values only where they are looked at."""

    def __init__(self, ends: Indices, weights: Floats) -> None:
        self._ends = ends  # (n_edges, 2)
        self.weights = weights
        """`(n_edges, 2)`, NaN where a circuit does not have the edge."""

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> ComparedEdge: ...

    @overload
    def __getitem__(self, index: slice) -> list[ComparedEdge]: ...

    def __getitem__(self, index: int | slice) -> ComparedEdge | list[ComparedEdge]:
        if isinstance(index, slice):
            return [self._edge(place) for place in range(*index.indices(len(self)))]
        return self._edge(index)

    def _edge(self, place: int) -> ComparedEdge:
        source, target = self._ends[place].tolist()
        first, second = (None if np.isnan(w) else float(w) for w in self.weights[place])
        return ComparedEdge(source=source, target=target, first=first, second=second)


class _Side:
    """One circuit with its nodes' keys."""

    def __init__(
        self,
        circuit: Circuit,
        numbering: dict[tuple[object, ...], int],
        summed: bool,
        *,
        by_name: frozenset[str],
        told: bool,
    ) -> None:
        self.circuit = circuit
        content = _contents(circuit, by_name)
        targets = [place for place, node in enumerate(circuit.nodes) if node.kind is NodeKind.LOGIT]
        read = dict(zip(targets, _reads(circuit, by_name, told=told, summed=summed), strict=True))
        keys = (
            (*_key(node, summed), content.get(node.replacement, ""), read.get(place))
            for place, node in enumerate(circuit.nodes)
        )
        self.keys: Indices = np.array([numbering.setdefault(key, len(numbering)) for key in keys], np.int64)

    def nodes(self, count: int) -> list[NodeSide | None]:
        """What the circuit has under each key."""
        found: list[NodeSide | None] = [None] * count
        for index, key in enumerate(self.keys.tolist()):
            node, before = self.circuit.nodes[index], found[key]
            found[key] = _added(before, index, node, self.circuit) if before else _side(index, node)
        return found

    def edges(self, count: int) -> tuple[Indices, Floats]:
        """Its edges as `source key * count + target key`, each once, and their summed weights."""
        edges = self.circuit.edges
        source, target = self.keys[numbers(edges.source)], self.keys[numbers(edges.target)]
        pairs, inverse = np.unique(source * count + target, return_inverse=True)
        weights = np.bincount(inverse, weights=numbers(edges.weight), minlength=len(pairs))
        return pairs, weights.astype(np.float64)


def _key(node: Node, summed: bool) -> tuple[object, ...]:
    return (node.kind, node.layer, node.feature, node.replacement, *(() if summed else (node.position,)))


def _side(index: int, node: Node) -> NodeSide:
    return NodeSide(
        node=index, count=1, activation=node.activation, influence=node.influence, effect=node.effect
    )


def _added(side: NodeSide, index: int, node: Node, circuit: Circuit) -> NodeSide:
    stronger = node.influence > circuit.nodes[side.node].influence
    return NodeSide(
        node=index if stronger else side.node,
        count=side.count + 1,
        activation=side.activation + node.activation,
        influence=side.influence + node.influence,
        effect=side.effect + node.effect,
    )


def _compared(sides: Sequence[_Side], first: NodeSide | None, second: NodeSide | None) -> ComparedNode:
    has, side = (sides[0], first) if first is not None else (sides[1], second)
    if side is None:
        raise ValueError("a key that neither circuit has")
    return ComparedNode(node=has.circuit.nodes[side.node], first=first, second=second)


def _edges(sides: Sequence[_Side], place: Indices) -> EdgeChanges:
    count = len(place)
    both = [side.edges(count) for side in sides]
    pairs = np.union1d(both[0][0], both[1][0])
    weights = np.full((len(pairs), 2), np.nan)
    for column, (found, weight) in enumerate(both):
        weights[np.searchsorted(pairs, found), column] = weight
    known = np.nan_to_num(weights)
    order = np.argsort(-np.abs(known[:, 1] - known[:, 0]), kind="stable")
    ends = np.stack([place[pairs // count], place[pairs % count]], axis=1)
    return EdgeChanges(ends[order], weights[order])


def _figures(first: Circuit, second: Circuit) -> tuple[tuple[Figure, Figure], ...]:
    def told(name: str, unit: str, a: float, b: float) -> tuple[Figure, Figure]:
        return Figure(name=name, value=a, unit=unit), Figure(name=name, value=b, unit=unit)

    a, b = first.figures, second.figures
    nothing = float("nan")
    ranks = [nothing if one.quality is None else one.quality.spearman for one in (first, second)]
    same = first.units == second.units  # else nothing can be said of one beside the other
    return (
        *((told("baseline", first.units, a.baseline, b.baseline),) if same else ()),
        told("selected_share", "", a.selected_share, b.selected_share),
        told("error_share", "", a.error_share, b.error_share),
        told("active_features", "", a.active_features, b.active_features),
        told("rank_correlation_with_ablations", "", *ranks),
        told("nodes", "", len(first.nodes), len(second.nodes)),
        told("edges", "", first.edges.weight.shape[0], second.edges.weight.shape[0]),
    )


def _overlap(nodes: Sequence[ComparedNode], edges: EdgeChanges) -> tuple[Figure, ...]:
    features = [one for one in nodes if one.node.kind is NodeKind.FEATURE]
    shares = np.array([(_influence(one.first), _influence(one.second)) for one in features]).reshape(-1, 2)
    both = np.array([one.first is not None and one.second is not None for one in features], np.bool_)
    weights = np.abs(np.nan_to_num(edges.weights))
    return (
        Figure(name="features_in_both", value=float(both.sum())),
        Figure(name="feature_jaccard", value=_ratio(both.sum(), len(both))),
        Figure(name="feature_overlap_by_influence", value=_ratio(shares.min(1).sum(), shares.max(1).sum())),
        Figure(name="edges_in_both", value=float(np.isfinite(edges.weights).all(1).sum())),
        Figure(name="edge_overlap_by_weight", value=_ratio(weights.min(1).sum(), weights.max(1).sum())),
    )


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _influence(side: NodeSide | None) -> float:
    return side.influence if side is not None else 0.0
