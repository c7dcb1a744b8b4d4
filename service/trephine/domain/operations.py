"""Operations: long, durable, watchable pieces of work."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trephine.domain.commands import Progress


class OperationState(StrEnum):
    """Where an operation is. The last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """True once the state cannot change any more."""
        return self in {OperationState.SUCCEEDED, OperationState.FAILED, OperationState.CANCELLED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why an operation failed, as an error that crosses borders."""

    reason: str
    message: str
    context: dict[str, str | int | float | bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationRecord:
    """A snapshot of an operation."""

    id: str
    """Derived from (tenant, method, request_id); the resource is `operations/<id>`."""
    method: str
    """`DiscoverCircuit`, `ExportCheckpoint`, ..."""
    state: OperationState
    progress: Progress | None
    result: str | None
    """Resource name of the result, `circuits/...`, once it succeeded."""
    failure: Failure | None
    attempts: int
    """How many times the work was started; above 1 after a crash."""
    create_time: str
    end_time: str | None
    sequence: int
    """Grows by one with every event; watching resumes from it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationEvent:
    """One thing that happened to a watched operation; `record.sequence` numbers it."""

    record: OperationRecord
    heartbeat: bool = False
    """True if nothing happened and the stream only shows that it is alive."""
