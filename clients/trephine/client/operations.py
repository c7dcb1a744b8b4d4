"""Operations: long, durable work that any number of clients can watch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from google.longrunning import operations_pb2
from google.protobuf.message import Message

from trephine.client.decoding import decode, message_json
from trephine.client.descriptions import described, of_operation
from trephine.client.errors import DeadlinePassedError, DrainingError, ServerUnreachableError
from trephine.client.paging import pages
from trephine.client.requests import resource
from trephine.client.results import unpack_result
from trephine.client.types import OperationMetadata, OperationUpdate, PartialCircuit, Progress
from trephine.client.wire import Wire
from trephine.v1 import operation_service_pb2

ResultT = TypeVar("ResultT")
OnProgress = Callable[[Progress], None]
OnPartial = Callable[[PartialCircuit], None]

RECONNECT_PAUSES = (0.2, 0.5, 1.0, 2.0, 3.0, 4.0)
"""Seconds between attempts to resume a watch; about ten in all, then the error is the caller's."""


class Operation(Generic[ResultT]):
    """A handle on one operation. Dropping it cancels nothing."""

    def __init__(self, wire: Wire, message: Any, finish: Callable[[Message], ResultT]) -> None:
        self._wire = wire
        self._message = message
        self._finish = finish

    def __repr__(self) -> str:
        return described(self, of_operation(self.name, self.metadata))

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
                    self._look_again(pauses)
            except DeadlinePassedError:
                seconds_left(self.name, ends)  # says that it goes on, where the transport says what it did
                raise
            except (ServerUnreachableError, DrainingError) as failure:
                time.sleep(next_pause(self.name, pauses, failure))

    def result(
        self,
        *,
        on_progress: OnProgress | None = None,
        on_partial: OnPartial | None = None,
        timeout_seconds: float | None = None,
    ) -> ResultT:
        """Wait for the end and return what it made.

        Args:
            on_progress: Called with every step.
            on_partial: Called with every growing graph, where there is one.
            timeout_seconds: None waits as long as it takes.

        Raises:
            TrephineError: Why it failed or was cancelled.
        """
        for update in self.watch(timeout_seconds=timeout_seconds):
            if on_progress is not None and not update.heartbeat and update.metadata.progress.stage:
                on_progress(update.metadata.progress)
            if on_partial is not None and update.partial_circuit is not None:
                on_partial(update.partial_circuit)
        return self._finish(unpack_result(self._message))

    def cancel(self) -> None:
        """Ask it to stop; it does within one quantum. `result` then raises `CancelledByCallerError`."""
        request = operations_pb2.CancelOperationRequest(name=self.name)
        self._wire.call(self._wire.operations.CancelOperation, request)

    def _follow(self, seen: int, ends: float | None) -> Iterator[OperationUpdate]:
        request = operation_service_pb2.WatchRequest(name=self.name, after_sequence=seen)
        left = seconds_left(self.name, ends)
        for response in self._wire.stream(self._wire.watching.Watch, request, timeout=left):
            self._message = response.operation
            yield decode(OperationUpdate, response)

    def _look_again(self, pauses: Iterator[float]) -> None:
        """The server ended the stream early, as it does when it drains."""
        self.refresh()
        if not self.done:
            time.sleep(next_pause(self.name, pauses, None))


def seconds_left(name: str, ends: float | None) -> float | None:
    """What is left of a time limit.

    Raises:
        DeadlinePassedError: If nothing is.
    """
    if ends is None:
        return None
    left = ends - time.monotonic()
    if left <= 0:
        raise DeadlinePassedError(f"{name} is not done yet; it goes on, wait for it again")
    return left


def next_pause(name: str, pauses: Iterator[float], failure: Exception | None) -> float:
    """How long to wait before a watch is resumed.

    Raises:
        ServerUnreachableError: If all attempts are used up.
    """
    seconds = next(pauses, None)
    if seconds is None:
        raise ServerUnreachableError(
            f"the server did not come back while {name} ran; it is durable and resumes when the server "
            f"starts again: trephine operations wait {name}"
        ) from failure
    return seconds


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
        request = operations_pb2.ListOperationsRequest(name="operations")
        found = pages(self._wire, self._wire.operations.ListOperations, request)
        return tuple(
            Operation(self._wire, message, self._finish) for page in found for message in page.operations
        )

    def delete(self, name: str) -> None:
        """Forget an operation that is done; what it made stays."""
        request = operations_pb2.DeleteOperationRequest(name=resource("operations", name))
        self._wire.call(self._wire.operations.DeleteOperation, request)
