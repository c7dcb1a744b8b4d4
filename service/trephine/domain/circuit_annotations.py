"""What people say about a circuit: pins, labels and groups of its nodes. Nodes are named by index."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeVar


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePin:
    """A node that pruning never drops."""

    node: int
    author: str
    create_time: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLabel:
    """What somebody calls a node, shown in place of the discovered label."""

    node: int
    text: str
    author: str
    create_time: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGroup:
    """A supernode: nodes that are read as one concept. A node is in at most one group."""

    name: str
    """Unique in its circuit."""
    nodes: tuple[int, ...]
    """Ascending."""
    author: str
    create_time: str
    how: str = ""
    """How it was found; empty if it was made by hand."""
    cohesion: float | None = None
    """Mean similarity of its pairs; None if it was made by hand, or if it has lost some of them."""

    @property
    def fewest(self) -> int:
        """Nodes that it takes: what was found says that several are alike, what was made by hand anything."""
        return 2 if self.how else 1

    def left_with(self, nodes: Collection[int], gone: int) -> NodeGroup | None:
        """Return what is left of it where it lost nodes; None if these are too few to be a group.

        What was found of all its nodes was not found of those that are left: it is said to be of the whole.

        Args:
            nodes: Those that are left, by what they are called now.
            gone: How many it lost.
        """
        if len(nodes) < self.fewest:
            return None
        left = replace(self, nodes=tuple(sorted(nodes)))
        if not gone or not self.how:
            return left
        how = self.how if self.how.startswith(_OF_THE_WHOLE) else f"{_OF_THE_WHOLE}{self.how}"
        return replace(left, how=how, cohesion=None)


_OF_THE_WHOLE = "of a larger group: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotations:
    """Everything that was said about one circuit."""

    pins: tuple[NodePin, ...] = ()
    labels: tuple[NodeLabel, ...] = ()
    groups: tuple[NodeGroup, ...] = ()

    @property
    def pinned(self) -> frozenset[int]:
        """The pinned nodes."""
        return frozenset(pin.node for pin in self.pins)

    @property
    def texts(self) -> dict[int, str]:
        """The labels' texts, by node."""
        return {label.node: label.text for label in self.labels}

    def moved(self, places: dict[int, int]) -> Annotations:
        """Rename nodes, and forget those that have no new name; groups left with too few go."""
        return Annotations(
            pins=_moved(self.pins, places),
            labels=_moved(self.labels, places),
            groups=_left(self.groups, places),
        )

    def without_nodes(self, taken: Collection[int]) -> tuple[NodeGroup, ...]:
        """Return the groups where nodes left them; those left with too few go."""
        nodes = {node for group in self.groups for node in group.nodes if node not in taken}
        return _left(self.groups, {node: node for node in nodes})


def _left(groups: Iterable[NodeGroup], places: Mapping[int, int]) -> tuple[NodeGroup, ...]:
    """Rename groups' nodes; those that have no new name are gone."""
    named = ((group, [places[node] for node in group.nodes if node in places]) for group in groups)
    left = (group.left_with(nodes, len(group.nodes) - len(nodes)) for group, nodes in named)
    return tuple(group for group in left if group is not None)


NO_ANNOTATIONS = Annotations()

SaidT = TypeVar("SaidT", NodePin, NodeLabel)


def _moved(said: tuple[SaidT, ...], places: dict[int, int]) -> tuple[SaidT, ...]:
    return tuple(replace(one, node=places[one.node]) for one in said if one.node in places)


GroupingBasis = Literal["directions", "edges"]
"""`directions`: encoders and decoders of the features. `edges`: where the nodes' edges come from and go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AutomaticGroups:
    """Group features by what they read and write, if they are close to each other."""

    basis: GroupingBasis = "directions"
    min_similarity: float = 0.5
    """Groups are merged while the mean similarity between them is at least this, in (0, 1]."""
    min_shown: float | None = None
    """Share of path mass that the picture must show, in (0, 1]: `min_similarity` is then the least of a grid
    at which it does."""
    max_layers_apart: int = 3
    max_positions_apart: int = 0
    max_nodes: int = 500
    """Only so many features, the most influential, are grouped."""
