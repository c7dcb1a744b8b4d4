"""Operations: long, durable work that any number of clients can watch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Generic, TypeVar

from google.longrunning import operations_pb2
from google.protobuf.message import Message

from trephine.client.aio.wire import AsyncWire
from trephine.client.decoding import decode, message_json
from trephine.client.descriptions import described, of_operation
from trephine.client.errors import DeadlinePassedError, DrainingError, ServerUnreachableError
from trephine.client.requests import resource
from trephine.client.results import unpack_result
from trephine.client.types import OperationMetadata, OperationUpdate
from trephine.client.watches import (
    RECONNECT_PAUSES,
    OnPartial,
    OnProgress,
    metadata_of,
    next_pause,
    seconds_left,
)
from trephine.v1 import operation_service_pb2

ResultT = TypeVar("ResultT")


class AsyncOperation(Generic[ResultT]):
    """A handle on one operation. Dropping it cancels nothing."""

    def __init__(self, wire: AsyncWire, message: Any, finish: Callable[[Message], ResultT]) -> None:
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

    async def refresh(self) -> OperationMetadata:
        """Ask where it is now."""
        request = operations_pb2.GetOperationRequest(name=self.name)
        self._message = await self._wire.call(self._wire.operations.GetOperation, request)
        return self.metadata

    async def watch(self, *, timeout_seconds: float | None = None) -> AsyncIterator[OperationUpdate]:
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
                async for update in self._follow(seen, ends):
                    seen, pauses = max(seen, update.metadata.sequence), iter(RECONNECT_PAUSES)
                    yield update
                if not self.done:
                    await self._look_again(pauses)
            except DeadlinePassedError:
                seconds_left(self.name, ends)  # says that it goes on, where the transport says what it did
                raise
            except (ServerUnreachableError, DrainingError) as failure:
                await asyncio.sleep(next_pause(self.name, pauses, failure))

    async def result(
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
        async for update in self.watch(timeout_seconds=timeout_seconds):
            if on_progress is not None and not update.heartbeat and update.metadata.progress.stage:
                on_progress(update.metadata.progress)
            if on_partial is not None and update.partial_circuit is not None:
                on_partial(update.partial_circuit)
        return self._finish(unpack_result(self._message))

    async def cancel(self) -> None:
        """Ask it to stop; it does within one quantum. `result` then raises `CancelledByCallerError`."""
        request = operations_pb2.CancelOperationRequest(name=self.name)
        await self._wire.call(self._wire.operations.CancelOperation, request)

    async def _follow(self, seen: int, ends: float | None) -> AsyncIterator[OperationUpdate]:
        request = operation_service_pb2.WatchRequest(name=self.name, after_sequence=seen)
        left = seconds_left(self.name, ends)
        async for response in self._wire.stream(self._wire.watching.Watch, request, timeout=left):
            self._message = response.operation
            yield decode(OperationUpdate, response)

    async def _look_again(self, pauses: Iterator[float]) -> None:
        """The server ended the stream early, as it does when it drains."""
        await self.refresh()
        if not self.done:
            await asyncio.sleep(next_pause(self.name, pauses, None))


class AsyncOperations:
    """Every operation of the server."""

    def __init__(self, wire: AsyncWire, finish: Callable[[Message], Any]) -> None:
        self._wire = wire
        self._finish = finish

    async def get(self, name: str) -> AsyncOperation[Any]:
        """One operation by name."""
        request = operations_pb2.GetOperationRequest(name=resource("operations", name))
        message = await self._wire.call(self._wire.operations.GetOperation, request)
        return AsyncOperation(self._wire, message, self._finish)

    async def list(self) -> tuple[AsyncOperation[Any], ...]:
        """All operations, newest first."""
        request = operations_pb2.ListOperationsRequest(name="operations")
        pages = self._wire.pages(self._wire.operations.ListOperations, request)
        return tuple(
            [
                AsyncOperation(self._wire, message, self._finish)
                async for page in pages
                for message in page.operations
            ]
        )

    async def delete(self, name: str) -> None:
        """Forget an operation that is done; what it made stays."""
        request = operations_pb2.DeleteOperationRequest(name=resource("operations", name))
        await self._wire.call(self._wire.operations.DeleteOperation, request)
