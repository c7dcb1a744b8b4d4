from __future__ import annotations

from dataclasses import dataclass

from trephine.client.decoding import WireValue
from trephine.client.types.group_scores import GroupingScores


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance(WireValue):
    """Where a circuit came from."""

    origin: str
    """`discovered`, `pruned` or `imported`; nothing about an imported one was verified."""
    parent: str
    """Resource name of the circuit that it was pruned from."""
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePin(WireValue):
    """A node that pruning never drops."""

    node: int
    author: str
    create_time: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLabel(WireValue):
    """What somebody calls a node."""

    node: int
    text: str
    author: str
    create_time: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGroup(WireValue):
    """A supernode: nodes that are read as one concept."""

    name: str
    nodes: tuple[int, ...]
    author: str
    create_time: str
    how: str
    """How it was found; empty if it was made by hand."""
    cohesion: float | None
    """Mean similarity of its pairs; None if it was made by hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitAnnotations(WireValue):
    """Everything that was said about a circuit's nodes."""

    circuit: str
    pins: tuple[NodePin, ...]
    labels: tuple[NodeLabel, ...]
    groups: tuple[NodeGroup, ...]
    scores: GroupingScores | None
    """Of the groups, where they were found just now or scores were asked for."""
    not_scored: str
    """Why groups that were found just now have no scores; empty if they have."""
