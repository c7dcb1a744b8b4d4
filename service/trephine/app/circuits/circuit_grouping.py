"""Supernodes found by themselves: features that are alike and close, merged by average linkage.

Similarity is the mean cosine of what two features read and of what they write (from the engine: writes are
directions of the one residual stream, whichever set they are of; reads are encoders as dictionaries have
them, behind a layer's own norm, and of a gated neuron the row that is not its gate), or the cosine of their
edges (from the graph alone). Only pairs within some layers and positions are candidates.
Average linkage (Sokal & Michener 1958) keeps chains of pairwise neighbours from growing into one group.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

from trephine.app.circuits.circuits import StoredCircuit
from trephine.app.circuits.group_measures import Flow, measure, partition_of, require_scorable
from trephine.app.circuits.pruning import numbers
from trephine.app.models.models import Models
from trephine.domain.circuit_annotations import AutomaticGroups, NodeGroup
from trephine.domain.circuit_sets import require_same_set
from trephine.domain.circuits import Circuit, Node, NodeKind
from trephine.domain.directions import CompareFeatures
from trephine.domain.errors import InvalidRequestError, NothingMatchedError
from trephine.domain.group_scores import GroupQuality
from trephine.domain.sites import FeatureRef

MOST_NODES = 2000
"""Features that are compared at once."""

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Of mean similarity, tried from the first where the picture must show a share of the path mass."""

Pairs = list[tuple[int, int, float]]
"""Places `i < j` among the compared nodes, and their similarity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Some of the compared nodes, by place, and the mean similarity of their pairs."""

    members: tuple[int, ...]
    cohesion: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Linked:
    """Clusters, and the threshold that they were merged by."""

    threshold: float
    clusters: list[Cluster]
    shown: float | None = None
    """Share of path mass that the picture shows, where the threshold was chosen by it."""

    @property
    def why(self) -> str:
        """How the threshold was chosen; empty if it was given."""
        if self.shown is None:
            return ""
        return f" (the least of a grid that shows enough of the path mass: {self.shown:.2f})"


async def found_groups(stored: StoredCircuit, how: AutomaticGroups, models: Models) -> list[NodeGroup]:
    """Return groups of two nodes and more, the most influential first; they carry no author yet.

    Raises:
        InvalidRequestError: If a bound is out of its domain, or directions of an imported circuit are asked.
        NothingMatchedError: If there are no two features, none are that similar, or no groups show enough.
        ParentChangedError: If directions are asked of a set that is not the circuit's own.
        UnsupportedOptionError: If the threshold is to be chosen and the circuit is too large for it.
    """
    _require(how)
    circuit = stored.circuit
    chosen = _most_influential(circuit, how.max_nodes)
    if len(chosen) < 2:
        features = "no feature" if not chosen else "one feature"
        raise NothingMatchedError(
            f"the circuit has {features}, and a group takes two: discover it with more nodes, or prune less",
            field="name",
        )
    if how.basis == "edges":
        pairs = await asyncio.to_thread(_pairs_by_edges, circuit, chosen, how)
    elif stored.provenance.is_foreign:
        raise InvalidRequestError(
            "the circuit is imported: the directions of its features are not here; group it by its edges",
            field="automatic.basis",
        )
    else:
        pairs = await _pairs_by_direction(circuit, chosen, how, models)
    linked = await asyncio.to_thread(_linked, circuit, chosen, pairs, how)
    if not linked.clusters:
        raise NothingMatchedError(
            f"no two of the {len(chosen)} most influential features are {linked.threshold:g} alike within "
            f"{how.max_layers_apart} layers and {how.max_positions_apart} positions; lower min_similarity",
            field="automatic.min_similarity",
        )
    return [_group(circuit, chosen, cluster, how, linked) for cluster in linked.clusters]


def _linked(circuit: Circuit, chosen: Sequence[int], pairs: Pairs, how: AutomaticGroups) -> Linked:
    """Link by the asked threshold, or by the least of the grid at which the picture shows enough.

    The choice looks at no control, so that what is said beside controls later was not chosen for.

    Raises:
        NothingMatchedError: If groups at every threshold show less.
        UnsupportedOptionError: If the circuit is too large to be measured.
    """
    if how.min_shown is None:
        clusters = _clusters(len(chosen), pairs, how.min_similarity)
        return Linked(threshold=how.min_similarity, clusters=clusters)
    require_scorable(circuit)
    flow, shown = Flow.of(circuit), 0.0
    for threshold in THRESHOLDS:
        clusters = _clusters(len(chosen), pairs, threshold)
        if not clusters:
            break
        groups = ([chosen[place] for place in cluster.members] for cluster in clusters)
        shown = measure(flow, partition_of(len(circuit.nodes), groups)).whole[GroupQuality.SHOWN]
        if shown >= how.min_shown:
            return Linked(threshold=threshold, clusters=clusters, shown=shown)
    raise NothingMatchedError(
        f"no groups of features at least {THRESHOLDS[0]:g} alike show {how.min_shown:g} of the path mass; "
        f"the most alike show {shown:.2f}: lower min_shown, or let them be farther apart",
        field="automatic.min_shown",
    )


def _clusters(count: int, pairs: Pairs, threshold: float) -> list[Cluster]:
    return average_linkage(count, [pair for pair in pairs if pair[2] >= threshold / 2], threshold)


def _least(how: AutomaticGroups) -> float:
    """A mean at the bound has parts below it; what is less than half as alike counts as 0."""
    return (how.min_similarity if how.min_shown is None else THRESHOLDS[0]) / 2


def average_linkage(count: int, pairs: Pairs, least: float) -> list[Cluster]:
    """Merge the two clusters of the largest mean similarity until it is below `least`.

    Pairs that are not given count as 0. Equal means are merged in order of their smallest places, so that
    the result depends on nothing else.

    Returns:
        Clusters of two places and more, by their smallest place.
    """
    members: dict[int, list[int]] = {place: [place] for place in range(count)}
    linked: dict[int, dict[int, float]] = {place: {} for place in range(count)}
    inside = dict.fromkeys(range(count), 0.0)
    for i, j, similarity in pairs:
        linked[i][j] = linked[j][i] = similarity
    queue = [(-similarity, i, j, 1, 1) for i, j, similarity in pairs if similarity >= least]
    heapify(queue)
    while queue:
        _, i, j, size_i, size_j = heappop(queue)
        if i not in members or j not in members or (len(members[i]), len(members[j])) != (size_i, size_j):
            continue  # one of them was merged since
        inside[i] += inside.pop(j) + linked[i].pop(j)
        members[i] += members.pop(j)
        linked[j].pop(i)
        for other, total in linked.pop(j).items():
            linked[other].pop(j)
            linked[i][other] = linked[other][i] = linked[i].get(other, 0.0) + total
        for other, total in linked[i].items():
            a, b = min(i, other), max(i, other)
            mean = total / (len(members[a]) * len(members[b]))
            if mean >= least:
                heappush(queue, (-mean, a, b, len(members[a]), len(members[b])))
    return [
        Cluster(members=tuple(sorted(places)), cohesion=inside[first] / (len(places) * (len(places) - 1) / 2))
        for first, places in sorted(members.items())
        if len(places) > 1
    ]


def unique_names(groups: Sequence[NodeGroup], taken: Iterable[str]) -> tuple[NodeGroup, ...]:
    """Number names that are there already."""
    used, named = set(taken), []
    for group in groups:
        name, number = group.name, 1
        while name in used:
            number += 1
            name = f"{group.name} ({number})"
        used.add(name)
        named.append(replace(group, name=name))
    return tuple(named)


def _require(how: AutomaticGroups) -> None:
    if how.min_shown is not None and not 0 < how.min_shown <= 1:
        raise InvalidRequestError("min_shown must be in (0, 1]", field="automatic.min_shown")
    if not 0 < how.min_similarity <= 1:
        raise InvalidRequestError("min_similarity must be in (0, 1]", field="automatic.min_similarity")
    if not 1 < how.max_nodes <= MOST_NODES:
        raise InvalidRequestError(f"max_nodes must be from 2 to {MOST_NODES}", field="automatic.max_nodes")
    for field in ("max_layers_apart", "max_positions_apart"):
        if getattr(how, field) < 0:
            raise InvalidRequestError(f"{field} must not be negative", field=f"automatic.{field}")


def _most_influential(circuit: Circuit, count: int) -> list[int]:
    features = [index for index, node in enumerate(circuit.nodes) if node.kind is NodeKind.FEATURE]
    return sorted(sorted(features, key=lambda index: (-circuit.nodes[index].influence, index))[:count])


async def _pairs_by_direction(
    circuit: Circuit, chosen: Sequence[int], how: AutomaticGroups, models: Models
) -> Pairs:
    shelved = models.shelf(circuit.model).sets
    for each in circuit.sets:
        if each.name in shelved:
            require_same_set(each, shelved[each.name].info.content_hash)
    nodes = [circuit.nodes[index] for index in chosen]
    keys = [(_feature(node), node.activation >= 0) for node in nodes]
    unique = list(dict.fromkeys(keys))
    compared = await models.engine(circuit.model).run(
        CompareFeatures(
            features=tuple(feature for feature, _ in unique),
            positive=tuple(positive for _, positive in unique),
            min_similarity=_least(how),
            max_layers_apart=how.max_layers_apart,
        )
    )
    places: dict[int, list[int]] = {}
    number = {key: place for place, key in enumerate(unique)}
    for place, key in enumerate(keys):
        places.setdefault(number[key], []).append(place)
    columns = (compared.first, compared.second, compared.similarity)
    alike = list(zip(*(numbers(column).tolist() for column in columns), strict=True))
    alike += [(one, one, 1.0) for one, several in places.items() if len(several) > 1]
    return [
        (min(i, j), max(i, j), similarity)
        for first, second, similarity in alike
        for i in places[first]
        for j in places[second]
        if (first != second or i < j)
        and abs(nodes[i].position - nodes[j].position) <= how.max_positions_apart
    ]


def _pairs_by_edges(circuit: Circuit, chosen: Sequence[int], how: AutomaticGroups) -> Pairs:
    """Compare where the edges of nodes come from and where they go, each half as a unit vector."""
    profile = _edge_profiles(circuit, chosen)
    layer = np.array([circuit.nodes[index].layer for index in chosen])
    position = np.array([circuit.nodes[index].position for index in chosen])
    near = np.abs(layer[:, None] - layer) <= how.max_layers_apart
    near &= np.abs(position[:, None] - position) <= how.max_positions_apart
    similarity = profile @ profile.T / 2
    first, second = np.nonzero(np.triu(near & (similarity >= _least(how)), 1))
    values = similarity[first, second]
    return list(zip(first.tolist(), second.tolist(), values.tolist(), strict=True))


def _edge_profiles(circuit: Circuit, chosen: Sequence[int]) -> NDArray[np.float32]:
    """Return incoming beside outgoing edges of the chosen nodes `(n_chosen, 2 n_nodes)`."""
    size = len(circuit.nodes)
    place = np.full(size, -1)
    place[list(chosen)] = np.arange(len(chosen))
    source, target = numbers(circuit.edges.source), numbers(circuit.edges.target)
    weight = numbers(circuit.edges.weight)
    halves = []
    for near, far in ((target, source), (source, target)):
        half = np.zeros((len(chosen), size), np.float32)
        ours = place[near] >= 0
        half[place[near[ours]], far[ours]] = weight[ours]
        halves.append(half / np.maximum(np.linalg.norm(half, axis=1, keepdims=True), 1e-30))
    return np.concatenate(halves, axis=1)


def _group(
    circuit: Circuit, chosen: Sequence[int], cluster: Cluster, how: AutomaticGroups, linked: Linked
) -> NodeGroup:
    indices = tuple(chosen[place] for place in cluster.members)
    return NodeGroup(
        name=_name([circuit.nodes[index] for index in indices]),
        nodes=indices,
        author="",
        create_time="",
        how=f"similar {how.basis}, at least {linked.threshold:g} alike on average{linked.why}, within "
        f"{how.max_layers_apart} layers and {how.max_positions_apart} positions",
        cohesion=cluster.cohesion,
    )


def _name(nodes: Sequence[Node]) -> str:
    """What the members promote most, and where they are."""
    votes: Counter[str] = Counter()
    for node in nodes:
        told = node.promotes if node.activation >= 0 else node.suppresses
        votes.update({token: 1 / (1 + rank) for rank, token in enumerate(told)})
    # Displays of tokens are fit to be shown; repr would escape their escapes.
    said = " ".join(f"'{token}'" for token, _ in votes.most_common(2)) or nodes[0].label
    layers, positions = [node.layer for node in nodes], [node.position for node in nodes]
    where = f" at {_range(positions)}" if min(positions) >= 0 else ""
    return f"{said}, layers {_range(layers)}{where}"[:200]


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low}-{high}"


def _feature(node: Node) -> FeatureRef:
    return FeatureRef(replacement=node.replacement, layer=node.layer, index=node.feature)
