"""The SQLite file of a feature index, as the engine writes it: resumable, each step one transaction."""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trephine.domain.errors import CorruptRecordError, DiskFullError
from trephine.domain.feature_index import LAYOUT, SCHEMA
from trephine.domain.tokens import Token
from trephine.engine.features.tally import Arrays

_BUSY_SECONDS = 30.0
"""A killed engine may still end its last quantum when the next one opens the file."""
_FULL = ("database or disk is full", "disk I/O error")


class IndexFile:
    """An index that is being built."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _typed_failures():
            self._database = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._database.execute("PRAGMA page_size = 32768")
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.executescript(SCHEMA)

    def close(self) -> None:
        """Close the file; what was not committed is gone."""
        self._database.close()

    def begin_request(self, request: Mapping[str, Any]) -> None:
        """Remember what is asked, or check that the file was begun for just that.

        Raises:
            CorruptRecordError: If it was begun for something else.
        """
        asked = {"layout": LAYOUT, **request}
        known = self.fact("request")
        if known is None:
            with self.transaction():
                self.set_fact("request", asked)
        elif known != asked:
            raise CorruptRecordError(
                "the unfinished index at this place was begun for another request; delete it and start again",
                record=self._path.name,
            )

    def fact(self, name: str) -> Any:
        """Return a fact, None if it is not there."""
        with _typed_failures():
            row = self._database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def set_fact(self, name: str, value: Any) -> None:
        """Store a fact."""
        text = json.dumps(value, sort_keys=True)
        self._database.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, text))

    def arrays(self, layer: int) -> dict[str, bytes] | None:
        """Return a layer's arrays as they were committed, None before the first commit."""
        with _typed_failures():
            rows = self._database.execute(
                "SELECT name, data FROM arrays WHERE layer = ?", (layer,)
            ).fetchall()
        return {name: zlib.decompress(data) for name, data in rows} or None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything inside, or nothing.

        Raises:
            DiskFullError: If there is no room; what was committed before stays.
        """
        with _typed_failures():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    def write_arrays(self, layer: int, arrays: Arrays) -> None:
        """Replace a layer's arrays."""
        rows = [(layer, name, zlib.compress(array.tobytes(), 1)) for name, array in arrays.items()]
        self._database.executemany("INSERT OR REPLACE INTO arrays VALUES (?, ?, ?)", rows)

    def write_contexts(self, contexts: Iterable[tuple[int, int, bytes]]) -> None:
        """Add contexts `(number, document, token ids)`."""
        self._database.executemany("INSERT INTO contexts VALUES (?, ?, ?)", contexts)

    def write_tokens(self, tokens: Iterable[Token]) -> None:
        """Add how tokens are spelled."""
        rows = [(token.id, token.raw, token.display) for token in tokens]
        self._database.executemany("INSERT OR IGNORE INTO tokens VALUES (?, ?, ?)", rows)

    def finish(self) -> None:
        """Leave one plain file without a journal beside it."""
        with _typed_failures():
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._database.execute("PRAGMA journal_mode = DELETE")


@contextmanager
def _typed_failures() -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError) and str(error) in _FULL:
            raise DiskFullError(
                "no room on the disk for the feature index; free some space and start it again, it goes on "
                "where it was"
            ) from error
        if type(error) is sqlite3.DatabaseError:
            raise CorruptRecordError(
                "the unfinished index cannot be read; delete it and start again"
            ) from error
        raise
