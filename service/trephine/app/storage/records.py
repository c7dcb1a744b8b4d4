"""Small values as JSON files, one file a value, validated whenever they are read."""

from __future__ import annotations

import json
from collections.abc import Hashable
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import structlog
from pydantic import TypeAdapter, ValidationError

from trephine.app.storage.files import sweep, write_whole
from trephine.domain.errors import CorruptRecordError

ValueT = TypeVar("ValueT")

_log = structlog.get_logger("trephine.records")


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def encode(value: Any) -> bytes:
    """Encode a value as canonical JSON: equal values give equal bytes. NaN and infinity are kept."""
    plain = _adapter(cast(Hashable, type(value))).dump_python(value, mode="json")
    return json.dumps(plain, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def decode(kind: type[ValueT], data: bytes, *, what: str) -> ValueT:
    """Read back what `encode` wrote.

    Raises:
        CorruptRecordError: If the bytes are not such a value.
    """
    try:
        value: ValueT = _adapter(cast(Hashable, kind)).validate_python(json.loads(data))
    except (ValueError, ValidationError) as error:
        raise CorruptRecordError(
            f"{what} cannot be read; restore it from a backup or delete it", record=what
        ) from error
    return value


class RecordFolder(Generic[ValueT]):
    """A folder of `<id>.json` files that hold one kind of value. Ids must have passed `names`."""

    def __init__(self, folder: Path, kind: type[ValueT]) -> None:
        self._folder = folder
        self._kind = kind
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(folder)

    def write(self, record_id: str, value: ValueT) -> None:
        """Store a value durably under its id.

        Raises:
            DiskFullError: If there is no room; an older value is untouched.
        """
        write_whole(self._path(record_id), encode(value))

    def read(self, record_id: str) -> ValueT | None:
        """Return the value, or None if there is none.

        Raises:
            CorruptRecordError: If its file cannot be read.
        """
        try:
            data = self._path(record_id).read_bytes()
        except FileNotFoundError:
            return None
        return decode(self._kind, data, what=f"{self._folder.name}/{record_id}")

    def delete(self, record_id: str) -> bool:
        """Forget a value; return whether there was one."""
        try:
            self._path(record_id).unlink()
        except FileNotFoundError:
            return False
        return True

    def exists(self, record_id: str) -> bool:
        """True if there is a value under the id."""
        return self._path(record_id).exists()

    def ids(self) -> tuple[str, ...]:
        """Every stored id, in alphabetical order."""
        return tuple(sorted(path.stem for path in self._folder.glob("*.json")))

    def all(self) -> dict[str, ValueT]:
        """Every value that can be read; one that cannot is logged as an error and left out."""
        values: dict[str, ValueT] = {}
        for record_id in self.ids():
            try:
                value = self.read(record_id)
            except CorruptRecordError as error:
                _log.error("corrupt_record", record=record_id, folder=self._folder.name, error=error.message)
                continue
            if value is not None:
                values[record_id] = value
        return values

    def _path(self, record_id: str) -> Path:
        return self._folder / f"{record_id}.json"
