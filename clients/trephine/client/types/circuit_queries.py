from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trephine.client.decoding import WireValue
from trephine.client.types.circuits import Edge, Node, NodeKind
from trephine.client.types.common import FeatureRef, Figure


class NodeSort(StrEnum):
    """In which order nodes are listed."""

    UNSPECIFIED = "unspecified"
    INFLUENCE = "influence"
    EFFECT = "effect"
    ACTIVATION = "activation"
    INDEX = "index"


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitPath(WireValue):
    """One path along kept edges."""

    nodes: tuple[int, ...]
    weights: tuple[float, ...]
    share: float
    """Signed product, over its edges, of weight / absolute sum of the kept weights into the same node."""
    contribution: float | None
    """What the source adds to the last node through this path, in that node's units, where it is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subgraph(WireValue):
    """A part of a circuit."""

    nodes: tuple[Node, ...]
    """Most influential first."""
    edges: tuple[Edge, ...]
    """Heaviest first."""
    n_nodes: int
    n_edges: int
    """Of the whole part, shown or not."""
    cut: bool
    """True if `max_nodes` left nodes out."""
    paths: tuple[CircuitPath, ...]
    """Between two nodes: the strongest, strongest first."""
    n_paths: float
    share: float
    """Signed shares of all paths, added up."""
    absolute_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSide(WireValue):
    """A node in one of two circuits; sums over positions where these are summed."""

    node: int
    count: int
    activation: float
    influence: float
    effect: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedNode(WireValue):
    """A node of either of two circuits. A missing side means that the other circuit alone has it."""

    kind: NodeKind
    layer: int
    position: int | None
    feature: FeatureRef | None
    label: str
    first: NodeSide | None
    second: NodeSide | None
    error_site: str
    """Of an error: where it is; empty otherwise."""

    @property
    def change(self) -> float:
        """Influence in the second less that in the first."""
        return (self.second.influence if self.second else 0.0) - (self.first.influence if self.first else 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedEdge(WireValue):
    """An edge of either of two circuits."""

    source: str
    target: str
    first: float | None
    second: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedFigure(WireValue):
    """The same figure of two circuits."""

    first: Figure
    second: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitDiff(WireValue):
    """The difference of two circuits, largest changes first."""

    nodes: tuple[ComparedNode, ...]
    edges: tuple[ComparedEdge, ...]
    n_nodes: int
    n_edges: int
    figures: tuple[ComparedFigure, ...]
    overlap: tuple[Figure, ...]
    caveats: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialNode(WireValue):
    """A node of a graph that is still growing."""

    layer: int
    position: int
    feature: int
    influence: float
    replacement: str
    """Its set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialEdge(WireValue):
    """An edge of a graph that is still growing, between places in `PartialCircuit.nodes`."""

    source: int
    target: int
    """-1 is what is explained."""
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialCircuit(WireValue):
    """A circuit after a round of expansion."""

    nodes: tuple[PartialNode, ...]
    edges: tuple[PartialEdge, ...]
    inside: float
    """Share of the influence of all features that is inside the expanded ones."""
    expanded: int
