"""Rows that say what another row of their split says: copies of a text are no more evidence than the text."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol, TypeVar
from unicodedata import category, normalize


def as_written(text: str) -> str:
    """Return a text without what differs between copies of it, for comparison alone.

    Compatibility composed (NFKC), format characters (zero-width spaces, soft hyphens, marks of direction)
    left out, every run of white space one space. Letters keep their case.
    """
    if not text.isascii():
        unseen = [ord(one) for one in set(text) if category(one) == "Cf"]
        text = normalize("NFKC", text.translate(dict.fromkeys(unseen)))
    return " ".join(text.split())


class Row(Protocol):
    """A labelled text, as far as it may repeat another one."""

    @property
    def text(self) -> str:
        """As given."""

    @property
    def label(self) -> str:
        """Of the task."""

    @property
    def attribute(self) -> str | None:
        """Where it is known."""

    @property
    def twin(self) -> str | None:
        """Its edit."""

    @property
    def environment(self) -> str | None:
        """Where it comes from."""

    @property
    def pair(self) -> str | None:
        """The comparison that it stands in."""


RowT = TypeVar("RowT", bound=Row)


def first_rows(rows: Sequence[Row]) -> list[int]:
    """Return places of the rows that repeat none before them, ascending.

    A row repeats another one if text, label, attribute, twin and environment are the same, but for how texts
    are written (`as_written`). A pair does as a whole, whatever its name: never is one text of it left alone.
    """
    pairs: dict[str, list[Hashable]] = {}
    for row in rows:
        if row.pair is not None:
            pairs.setdefault(row.pair, []).append(_said(row))
    seen = dict[Hashable, str | int]()
    first = []
    for place, row in enumerate(rows):
        holder = place if row.pair is None else row.pair
        key = _said(row) if row.pair is None else frozenset(pairs[row.pair])
        if seen.setdefault(key, holder) == holder:
            first.append(place)
    return first


def distinct(rows: Sequence[RowT]) -> tuple[RowT, ...]:
    """Return the rows that repeat none before them."""
    return tuple(rows[place] for place in first_rows(rows))


class Written(Protocol):
    """Anything that is a text."""

    @property
    def text(self) -> str:
        """As given."""


WrittenT = TypeVar("WrittenT", bound=Written)


def first_texts(texts: Sequence[WrittenT]) -> list[tuple[int, WrittenT]]:
    """Return texts that stand nowhere before, however they are written, each with its place."""
    first = dict[str, tuple[int, WrittenT]]()
    for place, one in enumerate(texts):
        first.setdefault(as_written(one.text), (place, one))
    return list(first.values())


def left_out(name: str, rows: int, kept: int) -> tuple[str, ...]:
    """Say how many rows of a split were left out; nothing where none was.

    Args:
        name: The split, in words.
        rows: As they were given.
        kept: Of these, rows that repeat none.
    """
    if kept == rows:
        return ()
    return (
        f"{rows - kept} of {rows} {name} repeat another row and are left out: copies are no more evidence",
    )


def _said(row: Row) -> Hashable:
    twin = None if row.twin is None else as_written(row.twin)
    return as_written(row.text), row.label, row.attribute, twin, row.environment
