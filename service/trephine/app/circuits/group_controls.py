"""Partitions to hold a grouping against: of the same sizes, by chance or by place alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from trephine.app.circuits.group_measures import ALONE, Indices, Partition
from trephine.domain.circuits import Circuit, NodeKind

_SWEEPS = 20
"""Of exchanges between two draws."""
_LAYERS = 4
"""Layers within which labels are exchanged at a time; where such a window begins changes with every sweep."""


class Places:
    """Which nodes of a circuit may stand in for which."""

    def __init__(self, circuit: Circuit, partition: Partition) -> None:
        nodes = circuit.nodes
        self.kind = np.array([list(NodeKind).index(node.kind) for node in nodes])
        self.layer = np.array([node.layer for node in nodes])
        self.position = np.array([node.position for node in nodes])
        influence = np.array([node.influence for node in nodes])
        self.candidates = self._candidates(partition, influence)
        self.low, self.high = self._windows(partition)

    def _candidates(self, partition: Partition, influence: NDArray[np.float64]) -> Indices:
        """Nodes of a grouped kind, at least as influential as its least influential member."""
        grouped = partition.label != ALONE
        allowed = np.zeros(len(grouped), np.bool_)
        for kind in np.unique(self.kind[grouped]):
            least = influence[grouped & (self.kind == kind)].min()
            allowed |= (self.kind == kind) & (influence >= least)
        return np.flatnonzero(allowed)

    def _windows(self, partition: Partition) -> tuple[Indices, Indices]:
        """Lowest and highest layer and position of every group's members `(count, 2)`."""
        grouped = np.flatnonzero(partition.label != ALONE)
        place = np.stack([self.layer[grouped], self.position[grouped]], axis=1)
        low = np.full((partition.count, 2), np.iinfo(np.int64).max)
        high = np.full((partition.count, 2), np.iinfo(np.int64).min)
        np.minimum.at(low, partition.label[grouped], place)
        np.maximum.at(high, partition.label[grouped], place)
        return low, high


def random_partitions(places: Places, partition: Partition, *, draws: int, seed: int) -> Iterator[Partition]:
    """Draw partitions of the same sizes, each group within the layers and positions that its own spans.

    Labels are exchanged between pairs of nodes of one kind, wherever both stay within their group's window:
    a symmetric chain whose stationary distribution is even over all such partitions. All draws start where
    one walk from the given partition ended, so that the given one is exchangeable with them if it is such a
    draw (Besag and Clifford 1989), and its rank is a p-value.
    """
    chooser = np.random.default_rng(seed)
    sweeps = range(_SWEEPS)
    hub = _walked(places, partition, chooser, reversed(sweeps))  # backwards: each sweep is its own reverse
    for _ in range(draws):
        yield _walked(places, hub, chooser, sweeps)


def _walked(
    places: Places, partition: Partition, chooser: np.random.Generator, sweeps: Iterable[int]
) -> Partition:
    label = partition.label.copy()
    for sweep in sweeps:
        one, other = _pairs(places, chooser, anywhere=sweep % 4 == 3)
        mine, theirs = label[one], label[other]
        fits = _within(places, other, mine) & _within(places, one, theirs)
        label[one[fits]], label[other[fits]] = theirs[fits], mine[fits]
    return Partition(label=label, count=partition.count)


def _pairs(places: Places, chooser: np.random.Generator, *, anywhere: bool) -> tuple[Indices, Indices]:
    """Match candidates of one kind at random, at one position and in near layers unless it is `anywhere`."""
    shuffled = chooser.permutation(places.candidates)
    block = places.kind[shuffled]
    if not anywhere:
        layer = (places.layer[shuffled] + 1 + chooser.integers(_LAYERS)) // _LAYERS
        first, last = places.position.min(), places.position.max()  # over many contexts every one is -1
        block = (block * (last - first + 1) + places.position[shuffled] - first) * 10_000 + layer
    order = np.argsort(block, kind="stable")
    shuffled, block = shuffled[order], block[order]
    # Neighbours of odd and of even rank within a block are matched; one that is left over stays.
    first = np.flatnonzero(np.r_[True, block[1:] != block[:-1]])
    rank = np.arange(len(block)) - np.repeat(first, np.diff(np.r_[first, len(block)]))
    starts = np.flatnonzero((rank[:-1] % 2 == 0) & (block[:-1] == block[1:]))
    return shuffled[starts], shuffled[starts + 1]


def _within(places: Places, nodes: Indices, label: Indices) -> NDArray[np.bool_]:
    """Whether each node lies in the window of a group; standing alone is possible everywhere."""
    layer, position = places.layer[nodes], places.position[nodes]
    low, high = places.low[label], places.high[label]
    fits: NDArray[np.bool_] = (low[:, 0] <= layer) & (layer <= high[:, 0])
    fits &= (low[:, 1] <= position) & (position <= high[:, 1])
    within: NDArray[np.bool_] = fits | (label == ALONE)
    return within


def partitions_by_layer(
    places: Places, partition: Partition, *, draws: int, seed: int
) -> Iterator[Partition]:
    """Regroup the members by place alone: along position and layer, cut into groups of the same sizes.

    What stands at one position and layer is in no order, nor are groups at one position: both are drawn.
    """
    chooser = np.random.default_rng(seed)
    members = np.flatnonzero(partition.label != ALONE)
    kinds = _first_of(partition, places.kind)
    for _ in range(draws):
        shuffled = chooser.permutation(members)
        order = np.lexsort((places.layer[shuffled], places.position[shuffled], places.kind[shuffled]))
        groups = chooser.permutation(partition.count)
        groups = groups[np.lexsort((places.low[groups, 1], kinds[groups]))]
        sizes = np.bincount(partition.label[members], minlength=partition.count)
        label = np.full(len(partition.label), ALONE)
        label[shuffled[order]] = np.repeat(groups, sizes[groups])
        yield Partition(label=label, count=partition.count)


def _first_of(partition: Partition, of_nodes: Indices) -> Indices:
    """The smallest value among each group's members `(count,)`."""
    found = np.full(partition.count, np.iinfo(np.int64).max)
    grouped = partition.label != ALONE
    np.minimum.at(found, partition.label[grouped], of_nodes[grouped])
    return found
