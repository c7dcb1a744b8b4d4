"""Operations."""

from __future__ import annotations

from collections.abc import AsyncIterator

from trephine.app.requests import OperationRequest
from trephine.domain.errors import InternalError
from trephine.domain.operations import OperationEvent, OperationRecord


class Operations:
    """Durable, watchable, cancellable work."""

    async def start(
        self, method: str, request: OperationRequest, *, request_id: str, tenant: str = "local"
    ) -> OperationRecord:
        """Start an operation, or return the one that this request id started."""
        raise InternalError("not available yet")

    def get(self, operation_id: str) -> OperationRecord:
        """A snapshot."""
        raise InternalError("not available yet")

    def list(self) -> tuple[OperationRecord, ...]:
        """Newest first."""
        raise InternalError("not available yet")

    async def cancel(self, operation_id: str) -> OperationRecord:
        """End the work within one quantum."""
        raise InternalError("not available yet")

    async def wait(self, operation_id: str, timeout_seconds: float | None = None) -> OperationRecord:
        """Return once it is final or the time is over, whichever comes first."""
        raise InternalError("not available yet")

    def delete(self, operation_id: str) -> None:
        """Forget a finished operation."""
        raise InternalError("not available yet")

    def watch(self, operation_id: str, after_sequence: int = 0) -> AsyncIterator[OperationEvent]:
        """Everything after a sequence number, until it is final; a heartbeat every 10 s."""
        raise InternalError("not available yet")

    def running(self) -> int:
        """How many operations are queued or running."""
        raise InternalError("not available yet")
