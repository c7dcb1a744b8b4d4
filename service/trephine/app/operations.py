"""Operations: durable, watchable, cancellable work."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from uuid import uuid4
from weakref import WeakValueDictionary

import structlog

from trephine.app.jobs.jobs import Jobs
from trephine.app.jobs.journal import Journal, StoredOperation
from trephine.app.jobs.requests import REQUEST_TYPES, OperationRequest
from trephine.app.storage.artifacts import ArtifactStore
from trephine.app.storage.clock import Clock, SystemClock
from trephine.app.storage.names import id_in
from trephine.app.storage.records import decode, encode
from trephine.app.work import Work
from trephine.domain.disk import why_no_room
from trephine.domain.errors import (
    CancelledByCallerError,
    CorruptRecordError,
    DiskFullError,
    DrainingError,
    EngineLostError,
    InternalError,
    InvalidRequestError,
    OperationNotDoneError,
    RequestIdReusedError,
    ResourceNotFoundError,
    TrephineError,
)
from trephine.domain.operations import Failure, OperationEvent, OperationRecord, OperationState

HEARTBEAT_SECONDS = 10.0

_ENGINE_RETRIES = 2
"""How often work whose engine died is started again within one life of the server."""

_MAX_UNENDED = 10
"""Work during which the server was lost this often in a row is given up: it may be what kills it."""

_log = structlog.get_logger("trephine.operations")


class Operations:
    """Starts operations, carries them out, and tells those who watch."""

    def __init__(
        self,
        *,
        jobs: Jobs,
        journal: Journal,
        requests: ArtifactStore,
        work: Work,
        clock: Clock | None = None,
        max_running: int = 8,
    ) -> None:
        self._jobs = jobs
        self._journal = journal
        self._requests = requests
        self._work = work
        self._clock = clock or SystemClock()
        self._slots = asyncio.Semaphore(max_running)
        self._starting: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._accepted: set[str] = set()
        self._tasks: dict[str, asyncio.Task[str]] = {}
        self._closing = False

    async def open(self) -> None:
        """Launch the job store and resume what an earlier server left unfinished."""
        await self._jobs.open(run=self._run, unfinished=self._journal.unfinished(), on_refused=self._refused)

    async def close(self) -> None:
        """Stop without ending any operation: what runs now is resumed by the next server."""
        self._closing = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._journal.settle()
        await self._jobs.close()

    async def start(
        self, method: str, request: OperationRequest, *, request_id: str, tenant: str = "local"
    ) -> OperationRecord:
        """Start an operation, or return the one that this request id started.

        An empty request id is a new one.

        Raises:
            RequestIdReusedError: If the id came with another request before.
            DrainingError: If the server is shutting down.
            TrephineError: What can be told to fail before any work.
        """
        kind = REQUEST_TYPES.get(method)
        if kind is None or not isinstance(request, kind):
            raise InvalidRequestError(f"{method} is no operation for a {type(request).__name__}")
        if self._closing:
            raise DrainingError("the server is shutting down; try again on the next one")
        operation_id = _operation_id(tenant, method, request_id or uuid4().hex)
        data = encode(request)
        async with self._starting.setdefault(operation_id, asyncio.Lock()):
            known = self._journal.find(operation_id)
            if known is not None:
                return _same(known, hashlib.sha256(data).hexdigest(), request_id)
            await self._work.check(request, operation_id=operation_id)
            stored = await self._requests.put(data, media_type="application/json")
            await self._journal.create(
                operation_id, method=method, tenant=tenant, request_sha256=stored.sha256
            )
            await self._jobs.submit(operation_id)
        return self._journal.get(operation_id)

    def get(self, operation_id: str) -> OperationRecord:
        """Return a snapshot; `operation_id` may be the resource name.

        Raises:
            ResourceNotFoundError: If there is no such operation.
        """
        return self._journal.get(id_in("operations", operation_id))

    def list(self) -> tuple[OperationRecord, ...]:
        """Return every operation, newest first."""
        return self._journal.all()

    def running(self) -> int:
        """Return how many operations have not ended."""
        return len(self._journal.unfinished())

    async def cancel(self, operation_id: str) -> OperationRecord:
        """End the work within one quantum; an operation that has ended stays as it is."""
        operation_id = id_in("operations", operation_id)
        if self._journal.get(operation_id).state.is_final:
            return self._journal.get(operation_id)
        await self._journal.request_cancel(operation_id)
        task = self._tasks.get(operation_id)
        if task is None:
            await self._journal.finish(operation_id, OperationState.CANCELLED)
        else:
            task.cancel()
        return await self.wait(operation_id)

    async def wait(self, operation_id: str, timeout_seconds: float | None = None) -> OperationRecord:
        """Return once the operation has ended or the time is over, whichever comes first."""
        operation_id = id_in("operations", operation_id)
        end = None if timeout_seconds is None else self._clock.monotonic() + timeout_seconds
        while not self._journal.get(operation_id).state.is_final:
            left = None if end is None else end - self._clock.monotonic()
            if left is not None and left <= 0:
                break
            await self._journal.changed(operation_id, left)
        return self._journal.get(operation_id)

    def delete(self, operation_id: str) -> None:
        """Forget an operation that has ended.

        Raises:
            OperationNotDoneError: If it has not.
        """
        operation_id = id_in("operations", operation_id)
        if not self._journal.get(operation_id).state.is_final:
            raise OperationNotDoneError(
                "the operation has not ended; cancel it before deleting it", name=f"operations/{operation_id}"
            )
        self._journal.delete(operation_id)

    async def watch(self, operation_id: str, after_sequence: int = 0) -> AsyncIterator[OperationEvent]:
        """Yield every event above a sequence number until the operation has ended.

        Events too old to be remembered are left out; the final one always comes. A heartbeat comes
        when nothing has happened for 10 s. Leaving cancels nothing.
        """
        operation_id = id_in("operations", operation_id)
        seen = after_sequence
        while True:
            for record in self._journal.events_after(operation_id, seen):
                seen = record.sequence
                yield OperationEvent(record=record)
                if record.state.is_final:
                    return
            latest = self._journal.get(operation_id)
            if latest.state.is_final and latest.sequence <= seen:
                yield OperationEvent(record=latest)
                return
            if latest.sequence > seen:
                continue
            if not await self._journal.changed(operation_id, HEARTBEAT_SECONDS):
                yield OperationEvent(record=self._journal.get(operation_id), heartbeat=True)

    # --- carrying out ----------------------------------------------------------------------------

    async def _run(self, operation_id: str) -> str:
        """Carry out an operation; called by the job store. Cancelled only when the server ends."""
        if operation_id in self._accepted:
            return "runs already"
        self._accepted.add(operation_id)
        try:
            return await self._run_once(operation_id)
        finally:
            self._accepted.discard(operation_id)

    async def _run_once(self, operation_id: str) -> str:
        async with self._slots:
            stored = self._journal.find(operation_id)
            if stored is None or stored.record.state.is_final:
                return "forgotten" if stored is None else stored.record.state.value
            if self._closing:
                raise asyncio.CancelledError
            if stored.cancel_requested:
                await self._journal.finish(operation_id, OperationState.CANCELLED)
            else:
                await self._carry_out(operation_id, stored)
            return self._journal.get(operation_id).state.value

    async def _carry_out(self, operation_id: str, stored: StoredOperation) -> None:
        task = asyncio.create_task(self._attempts(operation_id, stored))
        self._tasks[operation_id] = task
        try:
            result = await task
        except asyncio.CancelledError:
            task.cancel()
            await self._stopped(operation_id)
        except Exception as error:  # every failure of the work becomes the operation's
            await self._fail(operation_id, error)
        else:
            await self._journal.finish(operation_id, OperationState.SUCCEEDED, result=result)
        finally:
            self._tasks.pop(operation_id, None)

    async def _stopped(self, operation_id: str) -> None:
        """The work was cancelled: by its caller, by the end of the server, or by a defect."""
        here = asyncio.current_task()
        if self._cancel_requested(operation_id):
            await self._journal.finish(operation_id, OperationState.CANCELLED)
        elif self._closing or (here is not None and here.cancelling()):
            # The server ends: leave the operation unfinished, the next server resumes it.
            await self._journal.interrupted(operation_id)
            raise asyncio.CancelledError
        else:
            await self._fail(operation_id, InternalError("the work stopped by itself"))

    async def _attempts(self, operation_id: str, stored: StoredOperation) -> str:
        if stored.unended >= _MAX_UNENDED:
            raise EngineLostError(
                f"given up: the server was lost in each of the last {stored.unended} attempts; see its log"
            )
        request = await self._request(stored)
        for retries_left in reversed(range(_ENGINE_RETRIES + 1)):
            await self._journal.begin(operation_id)
            try:
                return await self._work.perform(
                    request,
                    lambda progress: self._journal.progress(operation_id, progress),
                    operation_id=operation_id,
                )
            except EngineLostError as error:
                _log.warning("engine_lost", operation=operation_id, error=error.message, left=retries_left)
                await self._journal.interrupted(operation_id)
                if not retries_left:
                    raise
        raise InternalError("unreachable: the last attempt returns or raises")

    async def _request(self, stored: StoredOperation) -> OperationRequest:
        try:
            data = await self._requests.read(stored.request_sha256)
        except ResourceNotFoundError as error:
            raise CorruptRecordError("the operation's stored request is gone; start it again") from error
        kind: type[OperationRequest] = REQUEST_TYPES[stored.record.method]
        return decode(kind, data, what=f"the request of operations/{stored.record.id}")

    async def _fail(self, operation_id: str, error: Exception) -> None:
        if isinstance(error, CancelledByCallerError) and self._cancel_requested(operation_id):
            await self._journal.finish(operation_id, OperationState.CANCELLED)
            return
        if not isinstance(error, TrephineError):
            _log.error("operation_broke", operation=operation_id, exc_info=error)
            error = _told(error)
        await self._journal.finish(operation_id, OperationState.FAILED, failure=_failure(error))

    def _cancel_requested(self, operation_id: str) -> bool:
        stored = self._journal.find(operation_id)
        return stored is not None and stored.cancel_requested and not self._closing

    def _refused(self, operation_id: str, error: CorruptRecordError) -> None:
        self._journal.finish_at_start(operation_id, _failure(error))


def _told(error: Exception) -> TrephineError:
    """Say what may be said of an error that nobody expected: that the disk is full, or where to look."""
    why = why_no_room(error) if isinstance(error, OSError) else None
    if why is not None:
        return DiskFullError(f"{why} where the server writes; make room there and start the operation again")
    return InternalError("an internal error ended the operation; the server's log has the details")


def _operation_id(tenant: str, method: str, request_id: str) -> str:
    return hashlib.sha256("\0".join((tenant, method, request_id)).encode()).hexdigest()[:32]


def _same(known: StoredOperation, request_sha256: str, request_id: str) -> OperationRecord:
    if known.request_sha256 != request_sha256:
        raise RequestIdReusedError(
            f"the request id {request_id} came with another request before; use a new one",
            operation=f"operations/{known.record.id}",
        )
    return known.record


def _failure(error: TrephineError) -> Failure:
    return Failure(reason=error.reason, message=error.message, context=dict(error.context))
