from __future__ import annotations

from dataclasses import dataclass

from trephine.client.decoding import WireValue
from trephine.client.types.circuit_queries import PartialCircuit
from trephine.client.types.common import Progress

FINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationMetadata(WireValue):
    """Where an operation is."""

    method: str
    """`DiscoverCircuit`, `ExportCheckpoint`, ..."""
    state: str
    """`queued`, `running`, `succeeded`, `failed`, `cancelled`."""
    progress: Progress
    attempts: int
    """How many times the work was started; above 1 after a crash."""
    create_time: str
    end_time: str
    sequence: int
    """Grows by one with every event; watching resumes from it."""
    result: str
    """Resource name of the result, once it succeeded."""

    @property
    def is_final(self) -> bool:
        """True once the state cannot change any more."""
        return self.state in FINAL_STATES


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationUpdate(WireValue):
    """One thing that happened to a watched operation."""

    metadata: OperationMetadata
    heartbeat: bool
    """True if nothing happened and the stream only shows that it is alive."""
    partial_circuit: PartialCircuit | None
    """Of a discovery, after a round of expansion (on a GPU at most ten a second): the graph so far."""
