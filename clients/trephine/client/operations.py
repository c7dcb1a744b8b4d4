"""Operations: long, durable work that any number of clients can watch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from google.longrunning import operations_pb2
from google.protobuf.message import Message

from trephine.client.decoding import decode, message_json
from trephine.client.errors import DeadlinePassedError, DrainingError, ServerUnreachableError
from trephine.client.requests import resource
from trephine.client.results import unpack_result
from trephine.client.types import OperationMetadata, OperationUpdate, Progress
from trephine.client.wire import Wire
from trephine.v1 import operation_service_pb2

ResultT = TypeVar("ResultT")
OnProgress = Callable[[Progress], None]

RECONNECT_PAUSES = (0.2, 0.5, 1.0, 2.0, 3.0, 4.0)
"""Seconds between attempts to resume a watch; about ten in all, then the error is the caller's."""


class Operation(Generic[ResultT]):
    """A handle on one operation. Dropping it cancels nothing."""

    def __init__(self, wire: Wire, message: Any, finish: Callable[[Message], ResultT]) -> None:
        self._wire = wire
        self._message = message
        self._finish = finish

    @property
    def name(self) -> str:
        """Resource name, `operations/...`."""
        return str(self._message.name)

    @property
    def message(self) -> Any:
        """The `google.longrunning.Operation` as last heard of."""
        return self._message

    @property
    def metadata(self) -> OperationMetadata:
        """Where it was when this handle last heard of it."""
        return metadata_of(self._message)

    @property
    def done(self) -> bool:
        """True once it has ended, well or not."""
        return bool(self._message.done)

    def to_json(self) -> str:
        """The operation in proto-JSON."""
        return message_json(self._message)

    def refresh(self) -> OperationMetadata:
        """Ask where it is now."""
        request = operations_pb2.GetOperationRequest(name=self.name)
        self._message = self._wire.call(self._wire.operations.GetOperation, request)
        return self.metadata

    def watch(self, *, timeout_seconds: float | None = None) -> Iterator[OperationUpdate]:
        """Everything that happens from now to the end. Leaving the loop cancels nothing.

        A lost connection is resumed where it broke.

        Raises:
            ServerUnreachableError: If the server does not come back within about ten seconds.
            DeadlinePassedError: If it is not done after `timeout_seconds`; it goes on.
        """
        ends = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        seen, pauses = 0, iter(RECONNECT_PAUSES)
        while not self.done:
            try:
                for update in self._follow(seen, ends):
                    seen, pauses = max(seen, update.metadata.sequence), iter(RECONNECT_PAUSES)
                    yield update
                if not self.done:
                    self.refresh()
            except (ServerUnreachableError, DrainingError) as failure:
                self._pause(pauses, failure)

    def result(
        self, *, on_progress: OnProgress | None = None, timeout_seconds: float | None = None
    ) -> ResultT:
        """Wait for the end and return what it made.

        Raises:
            TrephineError: Why it failed or was cancelled.
        """
        for update in self.watch(timeout_seconds=timeout_seconds):
            if on_progress is not None and not update.heartbeat and update.metadata.progress.stage:
                on_progress(update.metadata.progress)
        return self._finish(unpack_result(self._message))

    def cancel(self) -> None:
        """Ask it to stop; it does within one quantum. `result` then raises `CancelledByCallerError`."""
        request = operations_pb2.CancelOperationRequest(name=self.name)
        self._wire.call(self._wire.operations.CancelOperation, request)

    def _follow(self, seen: int, ends: float | None) -> Iterator[OperationUpdate]:
        left = None if ends is None else ends - time.monotonic()
        if left is not None and left <= 0:
            raise DeadlinePassedError(f"{self.name} is not done yet; it goes on, wait for it again")
        request = operation_service_pb2.WatchRequest(name=self.name, after_sequence=seen)
        for response in self._wire.stream(self._wire.watching.Watch, request, timeout=left):
            self._message = response.operation
            yield decode(OperationUpdate, response)

    def _pause(self, pauses: Iterator[float], failure: Exception) -> None:
        seconds = next(pauses, None)
        if seconds is None:
            raise ServerUnreachableError(
                f"the server did not come back while {self.name} ran; it is durable and resumes when the "
                f"server starts again: trephine operations wait {self.name}"
            ) from failure
        time.sleep(seconds)


def metadata_of(operation: Any) -> OperationMetadata:
    """The metadata of a `google.longrunning.Operation`."""
    packed = operation_service_pb2.OperationMetadata()
    operation.metadata.Unpack(packed)
    return decode(OperationMetadata, packed)


class Operations:
    """Every operation of the server."""

    def __init__(self, wire: Wire, finish: Callable[[Message], Any]) -> None:
        self._wire = wire
        self._finish = finish

    def get(self, name: str) -> Operation[Any]:
        """One operation by name."""
        request = operations_pb2.GetOperationRequest(name=resource("operations", name))
        message = self._wire.call(self._wire.operations.GetOperation, request)
        return Operation(self._wire, message, self._finish)

    def list(self) -> tuple[Operation[Any], ...]:
        """All operations, newest first."""
        found: list[Operation[Any]] = []
        token = ""
        while True:
            request = operations_pb2.ListOperationsRequest(name="operations", page_token=token)
            page: Any = self._wire.call(self._wire.operations.ListOperations, request)
            found += [Operation(self._wire, message, self._finish) for message in page.operations]
            token = page.next_page_token
            if not token:
                return tuple(found)

    def delete(self, name: str) -> None:
        """Forget an operation that is done; what it made stays."""
        request = operations_pb2.DeleteOperationRequest(name=resource("operations", name))
        self._wire.call(self._wire.operations.DeleteOperation, request)
