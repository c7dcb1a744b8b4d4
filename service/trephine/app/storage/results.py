"""What operations found, kept as records: found once, got by name, listed newest first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, TypeVar

from trephine.app.storage.names import id_in, resource
from trephine.app.storage.records import RecordFolder, ValueT
from trephine.domain.errors import ResourceNotFoundError


class Stamped(Protocol):
    """What has a name and a time."""

    @property
    def name(self) -> str:
        """Resource name."""
        ...

    @property
    def create_time(self) -> str:
        """RFC 3339, in UTC: sorts as time does."""
        ...


StampedT = TypeVar("StampedT", bound=Stamped)


async def found_once(
    records: RecordFolder[ValueT], result_id: str, find: Callable[[], Awaitable[ValueT]]
) -> ValueT:
    """Return what is stored under an id, or find it and store it there.

    Raises:
        CorruptRecordError: If its file cannot be read.
        TrephineError: Whatever finding raised; nothing is stored then.
    """
    known = await asyncio.to_thread(records.read, result_id)
    if known is not None:
        return known
    found = await find()
    await asyncio.to_thread(records.write, result_id, found)
    return found


async def stored_result(records: RecordFolder[ValueT], collection: str, name: str, *, what: str) -> ValueT:
    """Return a result by its resource name, or by the id alone.

    Args:
        records: Where results of its kind are.
        collection: Of their names.
        name: `collection/ID` or `ID`.
        what: What they are to people: `verification`.

    Raises:
        InvalidRequestError: If it is no name of that collection.
        ResourceNotFoundError: If there is none of that name.
        CorruptRecordError: If its file cannot be read.
    """
    identifier = id_in(collection, name)
    stored = await asyncio.to_thread(records.read, identifier)
    if stored is None:
        raise ResourceNotFoundError(f"there is no {what} {identifier}", name=resource(collection, identifier))
    return stored


def newest_first(results: Iterable[StampedT]) -> tuple[StampedT, ...]:
    """Sort by time, the newest first; of the same moment by name, so that pages are stable."""
    return tuple(sorted(results, key=lambda one: (one.create_time, one.name), reverse=True))
