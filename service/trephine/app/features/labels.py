"""What people call features: per content hash of a set, layer and index. The last write wins."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from trephine.app.features.feature_sets import FeatureSet
from trephine.app.storage.clock import Clock, SystemClock, timestamp
from trephine.domain.errors import (
    CorruptRecordError,
    InvalidRequestError,
    ResourceNotFoundError,
    TrephineError,
)
from trephine.domain.features import FeatureLabel
from trephine.domain.sites import FeatureRef

LONGEST_LABEL, LONGEST_AUTHOR = 200, 100
_BUSY_SECONDS = 30.0
_HIDDEN = frozenset({"Cc", "Cs", "Zl", "Zp", "Co", "Cn"})
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS labels (
  content_hash TEXT NOT NULL, layer INTEGER NOT NULL, feature INTEGER NOT NULL,
  text TEXT NOT NULL, author TEXT NOT NULL, create_time TEXT NOT NULL,
  PRIMARY KEY (content_hash, layer, feature)
) WITHOUT ROWID
"""
ValueT = TypeVar("ValueT")


class Labels:
    """Labels in one SQLite file, every change a transaction of its own."""

    def __init__(self, path: Path, *, clock: Clock | None = None) -> None:
        self._path = path
        self._clock = clock or SystemClock()

    async def set(self, features: FeatureSet, feature: FeatureRef, text: str, author: str) -> FeatureLabel:
        """Label a feature, or label it anew.

        Raises:
            FeatureOutOfRangeError: If there is no such feature.
            InvalidRequestError: If text or author is empty, too long or holds control characters.
        """
        features.require(feature, field="feature")
        label = FeatureLabel(
            feature=feature,
            text=require_label(text, LONGEST_LABEL, field="text"),
            author=require_label(author, LONGEST_AUTHOR, field="author") if author else "",
            create_time=timestamp(self._clock.now()),
        )
        await self._run(lambda database: _write(database, features, (label,)))
        return label

    async def get(self, features: FeatureSet, wanted: Sequence[FeatureRef]) -> dict[FeatureRef, FeatureLabel]:
        """Return the labels that some features have."""
        query = "SELECT * FROM labels WHERE content_hash = ? AND layer = ? AND feature = ?"

        def read(database: sqlite3.Connection) -> list[tuple[Any, ...]]:
            keys = ((features.content_hash, one.layer, one.index) for one in dict.fromkeys(wanted))
            found = (database.execute(query, key).fetchone() for key in keys)
            return [row for row in found if row is not None]

        labels = [_label(features, row) for row in await self._run(read)]
        return {label.feature: label for label in labels}

    async def list(self, features: FeatureSet, layer: int | None = None) -> tuple[FeatureLabel, ...]:
        """Return a set's labels, by layer and index."""
        query = "SELECT * FROM labels WHERE content_hash = ?1 AND (?2 IS NULL OR layer = ?2)"
        rows = await self._run(
            lambda database: database.execute(query, (features.content_hash, layer)).fetchall()
        )
        return tuple(_label(features, row) for row in sorted(rows))

    async def find(self, features: FeatureSet, query: str) -> tuple[tuple[FeatureLabel, float], ...]:
        """Return labels that hold every word of a query, whatever its case, best match first.

        The score is the share of the label that the words make up.

        Raises:
            InvalidRequestError: If the query has no word.
        """
        words = query.casefold().split()
        if not words:
            raise InvalidRequestError("write a word that the label holds", field="label")
        found = []
        for label in await self.list(features):
            text = label.text.casefold()
            if all(word in text for word in words):
                found.append((label, min(1.0, sum(map(len, words)) / max(1, len("".join(text.split()))))))
        return tuple(sorted(found, key=lambda one: (-one[1], one[0].feature)))

    async def delete(self, features: FeatureSet, feature: FeatureRef) -> None:
        """Forget a label.

        Raises:
            ResourceNotFoundError: If the feature has none.
        """
        query = "DELETE FROM labels WHERE content_hash = ? AND layer = ? AND feature = ?"
        key = (features.content_hash, feature.layer, feature.index)
        if not await self._run(lambda database: database.execute(query, key).rowcount):
            raise ResourceNotFoundError(
                f"feature {feature.layer}:{feature.index} of {features.name} has no label"
            )

    async def import_lines(self, features: FeatureSet, data: bytes, author: str) -> int:
        """Store labels from JSONL, all of them or none; return how many.

        A line is `{"layer": 12, "index": 345, "label": "..."}` with an optional `author`. Labels that are
        there are replaced. A line that names its set (`replacement`, `content_hash`), as exported ones do,
        is taken for that set alone.

        Raises:
            InvalidRequestError: Naming the first line that is no label of the set.
        """
        now = timestamp(self._clock.now())
        labels = await asyncio.to_thread(_parsed, features, data, author, now)
        await self._run(lambda database: _write(database, features, labels))
        return len(labels)

    async def export_lines(self, features: FeatureSet) -> bytes:
        """Return a set's labels as JSONL that `import_lines` reads back."""
        lines = [
            json.dumps(
                {
                    "layer": label.feature.layer,
                    "index": label.feature.index,
                    "label": label.text,
                    "author": label.author,
                    "create_time": label.create_time,
                    "replacement": features.name,
                    "content_hash": features.content_hash,
                },
                ensure_ascii=False,
            )
            for label in await self.list(features)
        ]
        return "".join(f"{line}\n" for line in lines).encode()

    async def _run(self, work: Callable[[sqlite3.Connection], ValueT]) -> ValueT:
        return await asyncio.to_thread(self._in_transaction, work)

    def _in_transaction(self, work: Callable[[sqlite3.Connection], ValueT]) -> ValueT:
        try:
            with closing(sqlite3.connect(self._path, timeout=_BUSY_SECONDS)) as database, database:
                database.execute(_SCHEMA)
                return work(database)
        except sqlite3.DatabaseError as error:
            if type(error) is sqlite3.DatabaseError:
                raise CorruptRecordError(
                    "the stored labels cannot be read; restore them from a backup", record=self._path.name
                ) from error
            raise


def require_label(text: str, longest: int, *, field: str) -> str:
    """Return a text that is fit to be shown on one line.

    Raises:
        InvalidRequestError: If it is blank, too long, or holds control characters or bidi marks.
    """
    if not text.strip():
        raise InvalidRequestError(f"{field} is blank; write a few words", field=field)
    if len(text) > longest:
        raise InvalidRequestError(f"{field} has {len(text)} characters and may have {longest}", field=field)
    for character in text:
        if unicodedata.category(character) in _HIDDEN or character in _BIDI:
            raise InvalidRequestError(
                f"{field} holds the control character U+{ord(character):04X}; write plain text on one line",
                field=field,
            )
    return text


def _write(database: sqlite3.Connection, features: FeatureSet, labels: Iterable[FeatureLabel]) -> None:
    rows = (
        (features.content_hash, one.feature.layer, one.feature.index, one.text, one.author, one.create_time)
        for one in labels
    )
    database.executemany("INSERT OR REPLACE INTO labels VALUES (?, ?, ?, ?, ?, ?)", rows)


def _label(features: FeatureSet, row: tuple[Any, ...]) -> FeatureLabel:
    _, layer, index, text, author, create_time = row
    feature = FeatureRef(replacement=features.name, layer=layer, index=index)
    return FeatureLabel(feature=feature, text=text, author=author, create_time=create_time)


def _parsed(features: FeatureSet, data: bytes, author: str, now: str) -> list[FeatureLabel]:
    labels = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            labels.append(_parsed_line(features, line, author, now))
        except TrephineError as error:
            raise InvalidRequestError(
                f"line {number}: {error.message}", field="lines", line=number
            ) from error
    if not labels:
        raise InvalidRequestError("there is no label in it; write one JSON object per line", field="lines")
    return labels


def _require_own(features: FeatureSet, line: dict[str, Any]) -> None:
    """Refuse a label of other features: the same layer and index mean something else there."""
    of = line.get("content_hash", features.content_hash)
    if of == features.content_hash:
        return
    name = line.get("replacement")
    named = f"{name} ({str(of)[:12]})" if isinstance(name, str) else str(of)[:12]
    raise InvalidRequestError(
        f"it labels features of {named}, and labels are imported for {features.name} "
        f"({features.content_hash[:12]}): name the set that it is of, or take `content_hash` out of the "
        "lines to store them here all the same"
    )


def _parsed_line(features: FeatureSet, line: bytes, author: str, now: str) -> FeatureLabel:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InvalidRequestError('no JSON; write {"layer": 12, "index": 345, "label": "..."}') from error
    if not isinstance(value, dict):
        raise InvalidRequestError("no JSON object")
    _require_own(features, value)
    layer, index, text = value.get("layer"), value.get("index"), value.get("label")
    if type(layer) is not int or type(index) is not int or not isinstance(text, str):
        raise InvalidRequestError("`layer` and `index` must be whole numbers and `label` a text")
    by = value.get("author", author)
    if not isinstance(by, str):
        raise InvalidRequestError("`author` must be a text")
    feature = FeatureRef(replacement=features.name, layer=layer, index=index)
    return FeatureLabel(
        feature=features.require(feature, field="feature"),
        text=require_label(text, LONGEST_LABEL, field="label"),
        author=require_label(by, LONGEST_AUTHOR, field="author") if by else "",
        create_time=now,
    )
