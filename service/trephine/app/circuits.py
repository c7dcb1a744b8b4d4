"""Circuits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trephine.domain.artifacts import ArtifactInfo
from trephine.domain.circuits import Circuit, Node, NodeKind, PrunedNodes
from trephine.domain.errors import InternalError

CircuitFormat = Literal["json", "html"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredCircuit:
    """A circuit with its resource name."""

    name: str
    create_time: str
    circuit: Circuit


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedNode:
    """A node with its index, and what enters it if it is a target row."""

    index: int
    node: Node
    bias: float | None
    remainder: float | None
    total: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedEdge:
    """One edge."""

    source: int
    target: int
    weight: float


class Circuits:
    """Stored circuits. `name` may be `circuits/ID` or `ID`."""

    async def save(self, circuit: Circuit, *, circuit_id: str | None = None) -> StoredCircuit:
        """Publish by one rename."""
        raise InternalError("not available yet")

    async def get(self, name: str) -> StoredCircuit:
        """One circuit."""
        raise InternalError("not available yet")

    async def list(self) -> tuple[StoredCircuit, ...]:
        """Newest first."""
        raise InternalError("not available yet")

    def nodes(
        self, stored: StoredCircuit, kind: NodeKind | None = None, min_influence: float | None = None
    ) -> Sequence[ListedNode]:
        """Most influential first."""
        raise InternalError("not available yet")

    def edges(
        self,
        stored: StoredCircuit,
        source: int | None = None,
        target: int | None = None,
        min_weight: float | None = None,
    ) -> Sequence[ListedEdge]:
        """Heaviest first."""
        raise InternalError("not available yet")

    def prune(
        self, circuit: Circuit, node_threshold: float = 0.8, edge_threshold: float = 0.98
    ) -> PrunedNodes:
        """Smallest graph that carries these shares of the influence."""
        raise InternalError("not available yet")

    async def render(
        self, name: str, format: CircuitFormat, node_threshold: float = 0.8, edge_threshold: float = 0.98
    ) -> tuple[ArtifactInfo, PrunedNodes]:
        """Render as an artifact."""
        raise InternalError("not available yet")
