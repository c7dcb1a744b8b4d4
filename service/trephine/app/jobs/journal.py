"""What has happened to every operation: in memory for watchers, on disk for the next server."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trephine.app.storage.clock import Clock, timestamp
from trephine.app.storage.records import RecordFolder
from trephine.domain.commands import Progress
from trephine.domain.errors import ResourceNotFoundError
from trephine.domain.operations import Failure, OperationRecord, OperationState

_RING = 256
"""Events kept for watchers that come back; the last one is always among them."""

_RESERVED = 100_000
"""Sequence numbers that may be shown before the record is stored again. A server that takes over after
a crash continues above them, so that no number is ever used for two different events."""

_STORE_SECONDS = 1.0
"""Progress is stored at most this often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredOperation:
    """An operation as it lies on disk."""

    record: OperationRecord
    tenant: str
    request_sha256: str
    """The request's artifact."""
    last_sequence: int
    """No event above this number has been shown."""
    cancel_requested: bool = False
    unended: int = 0
    """Attempts in a row after which the server was gone without having stopped them."""


@dataclass(slots=True)
class _Entry:
    stored: StoredOperation
    ring: deque[OperationRecord]
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)
    stored_at: float = 0.0
    pending: asyncio.Task[None] | None = None


class Journal:
    """Records of operations. All methods belong to the event loop's thread."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._records = RecordFolder(folder, StoredOperation)
        self._clock = clock
        self._entries = {
            operation_id: _resumed(stored) for operation_id, stored in self._records.all().items()
        }

    def find(self, operation_id: str) -> StoredOperation | None:
        """Return an operation, or None."""
        entry = self._entries.get(operation_id)
        return entry.stored if entry else None

    def get(self, operation_id: str) -> OperationRecord:
        """Return an operation's record.

        Raises:
            ResourceNotFoundError: If there is none.
        """
        return self._entry(operation_id).stored.record

    def all(self) -> tuple[OperationRecord, ...]:
        """Return every operation, newest first."""
        records = [entry.stored.record for entry in self._entries.values()]
        return tuple(sorted(records, key=lambda record: (record.create_time, record.id), reverse=True))

    def unfinished(self) -> tuple[str, ...]:
        """Return the ids of operations that have not ended, oldest first."""
        return tuple(record.id for record in reversed(self.all()) if not record.state.is_final)

    async def create(
        self, operation_id: str, *, method: str, tenant: str, request_sha256: str
    ) -> OperationRecord:
        """Enter a new operation durably."""
        record = OperationRecord(
            id=operation_id,
            method=method,
            state=OperationState.QUEUED,
            progress=None,
            result=None,
            failure=None,
            attempts=0,
            create_time=timestamp(self._clock.now()),
            end_time=None,
            sequence=1,
        )
        stored = StoredOperation(
            record=record, tenant=tenant, request_sha256=request_sha256, last_sequence=_RESERVED
        )
        self._entries[operation_id] = _Entry(stored, deque([record], maxlen=_RING))
        await self._store(operation_id)
        return record

    async def begin(self, operation_id: str) -> None:
        """Count an attempt durably, before its work starts."""
        entry = self._entry(operation_id)
        attempts = entry.stored.record.attempts + 1
        entry.stored = replace(entry.stored, unended=entry.stored.unended + 1)
        self._change(operation_id, state=OperationState.RUNNING, attempts=attempts, progress=None)
        await self._store(operation_id)

    async def interrupted(self, operation_id: str) -> None:
        """Remember durably that an attempt was stopped in order: it did not kill the server."""
        entry = self._entry(operation_id)
        entry.stored = replace(entry.stored, unended=0)
        await self._store(operation_id)

    def progress(self, operation_id: str, progress: Progress) -> None:
        """Show progress at once; store it soon, at most once a second."""
        entry = self._entry(operation_id)
        if entry.stored.record.state.is_final:
            return
        self._change(operation_id, progress=progress)
        due = self._clock.monotonic() - entry.stored_at >= _STORE_SECONDS
        if due and (entry.pending is None or entry.pending.done()):
            entry.stored_at = self._clock.monotonic()
            entry.pending = asyncio.get_running_loop().create_task(self._store(operation_id))

    async def request_cancel(self, operation_id: str) -> None:
        """Remember durably that somebody wants the end of it."""
        entry = self._entry(operation_id)
        entry.stored = replace(entry.stored, cancel_requested=True)
        await self._store(operation_id)

    async def finish(
        self,
        operation_id: str,
        state: OperationState,
        *,
        result: str | None = None,
        failure: Failure | None = None,
    ) -> None:
        """Enter the final state, durably before it is shown. Only the first call counts."""
        entry = self._entry(operation_id)
        async with entry.writing:
            if entry.stored.record.state.is_final:
                return
            now = timestamp(self._clock.now())
            final = _next(entry, state=state, result=result, failure=failure, end_time=now)
            await asyncio.to_thread(self._records.write, operation_id, final)
            # Progress may have been shown during the write; the final event comes after all of it.
            final = replace(final, record=replace(final.record, sequence=entry.stored.record.sequence + 1))
            self._show(entry, final)

    def finish_at_start(self, operation_id: str, failure: Failure) -> None:
        """Fail an operation before the server serves; for records that cannot be resumed."""
        entry = self._entries.get(operation_id)
        if entry is None or entry.stored.record.state.is_final:
            return
        now = timestamp(self._clock.now())
        final = _next(entry, state=OperationState.FAILED, failure=failure, end_time=now)
        self._records.write(operation_id, final)
        self._show(entry, final)

    def delete(self, operation_id: str) -> None:
        """Forget an operation; those who watch it are told by their next read."""
        entry = self._entry(operation_id)
        del self._entries[operation_id]
        self._records.delete(operation_id)
        entry.changed.set()

    def events_after(self, operation_id: str, sequence: int) -> tuple[OperationRecord, ...]:
        """Return the remembered events above a sequence number, oldest first."""
        ring = self._entry(operation_id).ring
        return tuple(record for record in ring if record.sequence > sequence)

    async def changed(self, operation_id: str, within_seconds: float | None) -> bool:
        """Wait for the next change; False if the time passed first."""
        event = self._entry(operation_id).changed
        if within_seconds is None:
            await event.wait()
            return True
        change = asyncio.ensure_future(event.wait())
        alarm = asyncio.ensure_future(self._clock.sleep(within_seconds))
        try:
            await asyncio.wait({change, alarm}, return_when=asyncio.FIRST_COMPLETED)
            return event.is_set()
        finally:
            change.cancel()
            alarm.cancel()

    async def settle(self) -> None:
        """Wait until every pending write has ended."""
        pending = [entry.pending for entry in self._entries.values() if entry.pending is not None]
        await asyncio.gather(*pending, return_exceptions=True)

    def _entry(self, operation_id: str) -> _Entry:
        try:
            return self._entries[operation_id]
        except KeyError:
            raise ResourceNotFoundError(
                f"there is no operation {operation_id}", name=f"operations/{operation_id}"
            ) from None

    def _change(self, operation_id: str, **fields: Any) -> None:
        entry = self._entry(operation_id)
        if entry.stored.record.sequence + 2 >= entry.stored.last_sequence:
            # Numbers run out until the next store: keep the news, show it with the next event.
            record = replace(entry.stored.record, **fields)
            entry.stored = replace(entry.stored, record=record)
            return
        self._show(entry, _next(entry, **fields))

    def _show(self, entry: _Entry, stored: StoredOperation) -> None:
        entry.stored = stored
        entry.ring.append(stored.record)
        changed, entry.changed = entry.changed, asyncio.Event()
        changed.set()

    async def _store(self, operation_id: str) -> None:
        entry = self._entry(operation_id)
        async with entry.writing:
            if entry.stored.record.state.is_final or operation_id not in self._entries:
                return
            ceiling = entry.stored.record.sequence + _RESERVED
            snapshot = replace(entry.stored, last_sequence=ceiling)
            await asyncio.to_thread(self._records.write, operation_id, snapshot)
            entry.stored = replace(entry.stored, last_sequence=ceiling)
            entry.stored_at = self._clock.monotonic()


def _next(entry: _Entry, **fields: Any) -> StoredOperation:
    record = replace(entry.stored.record, sequence=entry.stored.record.sequence + 1, **fields)
    return replace(entry.stored, record=record)


def _resumed(stored: StoredOperation) -> _Entry:
    """An unfinished operation of a server that ended continues above every number it may have shown."""
    if not stored.record.state.is_final:
        record = replace(stored.record, sequence=stored.last_sequence, state=OperationState.QUEUED)
        stored = replace(stored, record=record, last_sequence=stored.last_sequence + _RESERVED)
    return _Entry(stored, deque([stored.record], maxlen=_RING))
