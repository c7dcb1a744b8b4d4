"""A circuit while it is still growing, small enough to be shown after rounds of expansion."""

from __future__ import annotations

from dataclasses import dataclass

SHOWN_NODES, SHOWN_EDGES = 32, 64
"""A watcher gets the top of the graph, not the graph: about 5 kB a round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialNode:
    """An expanded feature."""

    layer: int
    position: int
    feature: int
    influence: float
    """Share of the path mass over the rows so far."""
    replacement: str
    """Its set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialEdge:
    """An edge between places among the shown nodes."""

    source: int
    target: int
    """-1 is what is explained."""
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialCircuit:
    """The most influential expanded features after a round, and the heaviest edges between them."""

    nodes: tuple[PartialNode, ...]
    """At most `SHOWN_NODES`, most influential first."""
    edges: tuple[PartialEdge, ...]
    """At most `SHOWN_EDGES`, heaviest first."""
    inside: float
    """Share of the influence of all features that is inside the expanded ones, 0 to 1."""
    expanded: int
