"""Questions about stored circuits, and where a circuit came from."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from trephine.domain.circuits import NodeKind

Origin = Literal["discovered", "pruned", "imported"]
"""`imported`: of a foreign file; nothing about it was verified here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """Where a stored circuit came from. What was stored before this was recorded was discovered."""

    origin: Origin = "discovered"
    parent: str = ""
    """Resource name of the circuit that it was pruned from; empty otherwise."""
    how: str = ""
    """Thresholds and pins, or file and generator, in words."""
    foreign: bool = False
    """True of what was pruned from an imported circuit: it came from that file, too."""

    @property
    def is_foreign(self) -> bool:
        """True if it came from a file, so that nothing can rest on it."""
        return self.foreign or self.origin == "imported"


DISCOVERED = Provenance()
"""Of circuits that were found here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitFilter:
    """Which circuits are listed; empty fields exclude nothing."""

    model: str = ""
    replacement: str = ""
    prompt: str = ""
    """A part of the prompt, whatever its case."""
    parent: str = ""
    """Resource name: only circuits that were pruned from it."""


EVERY_CIRCUIT = CircuitFilter()
"""Excludes nothing."""


class NodeSort(StrEnum):
    """In which order nodes are listed. All but the last put the largest first."""

    INFLUENCE = "influence"
    EFFECT = "effect"
    """By absolute effect."""
    ACTIVATION = "activation"
    """By absolute activation."""
    INDEX = "index"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFilter:
    """Which nodes are listed; empty fields exclude nothing."""

    kind: NodeKind | None = None
    min_influence: float | None = None
    layers: frozenset[int] = frozenset()
    positions: frozenset[int] = frozenset()
    token: str = ""
    """A part of the token at the node's position, or of its label, whatever the case."""
    pinned: bool = False
    """Only nodes that are pinned."""
    order: NodeSort = NodeSort.INFLUENCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """The subgraph around one node: all walks of at most so many steps that end at it, or start there."""

    node: int
    ancestors: int = 1
    """Steps against the edges; 0 leaves them out."""
    descendants: int = 1
    """Steps along the edges; 0 leaves them out."""
    min_weight: float = 0.0
    """Edges of a smaller absolute weight are not followed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Between:
    """The subgraph of all paths from one node to another, and the strongest of them."""

    source: int
    target: int
    paths: int = 10
    """How many of the strongest paths are listed; 0 lists none."""
    min_weight: float = 0.0
    """Edges of a smaller absolute weight are not followed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitPath:
    """One path along kept edges."""

    nodes: tuple[int, ...]
    weights: tuple[float, ...]
    """Of its edges, each in units of the activation of the node that it enters, or of what is explained."""
    share: float
    """Signed product, over its edges, of weight / absolute sum of the kept weights into the same node.

    The absolute shares of all paths into a node from everywhere sum to one (Ameisen et al. 2025).
    """
    contribution: float | None
    """What the source adds to the last node through this path, in that node's units.

    The product of the weights, each but the last over the activation of the node that it enters. None where
    that activation is not known (imported circuits may not say it) or zero.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """What a pruned circuit keeps."""

    node_threshold: float = 0.8
    """Share of the influence that the kept nodes reach."""
    edge_threshold: float = 0.98
    """The same for edges."""
    max_nodes: int | None = None
    """At most so many features and error nodes, the most influential; pinned ones come on top."""
    max_edges: int | None = None
    """At most so many edges, those that carry most influence; those of pinned nodes come on top."""
    keep: tuple[int, ...] = ()
    """Nodes that are kept beside the pinned ones."""
