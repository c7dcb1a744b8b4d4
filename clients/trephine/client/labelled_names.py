"""Names in labelled files: of labels, attributes, environments and pairs, each written in one way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from unicodedata import category, normalize

from trephine.client.errors import InvalidRequestError

_WORDS = ("label", "attribute")
"""Roles that are named by words. An environment or a pair may have a key, in which case counts."""


@dataclass(slots=True)
class NamesRead:
    """What was read so far: two spellings of one name, or a number beside a text, are no two names."""

    _spelled: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    """Role and name, however it is written, to its spelling and place."""
    _kinds: dict[tuple[str, str], tuple[str, Any, str]] = field(default_factory=dict)
    """File and role to kind, value and place of the first cell."""

    def add(self, role: str, name: str, *, cell: Any, column: str, file: str, place: str) -> None:
        """Keep a name.

        Args:
            role: What it names: `label`, `attribute`, `environment`, `pair`.
            name: As it is read.
            cell: As it stands in the file.
            column: That holds it.
            file: Whose cells have one kind.
            place: File and row.

        Raises:
            InvalidRequestError: If it is another one but for how it is written, or a number where others are
                texts; the message holds both places.
        """
        if role in _WORDS:  # a key may be a number here and a text there
            self._require_kind(role, cell, column=column, file=file, place=place)
        alike = _alike(name, role)
        spelled, first = self._spelled.setdefault((role, alike), (name, place))
        if spelled != name:
            raise InvalidRequestError(
                f"{place}: column {column!r} holds {name!a}, and {spelled!a} in {first}; these differ in "
                f"{'case, ' if role in _WORDS else ''}blanks or characters that cannot be seen alone, and "
                "would count as two names: write one of them everywhere",
                field=column,
            )

    def _require_kind(self, role: str, cell: Any, *, column: str, file: str, place: str) -> None:
        kind, other, there = self._kinds.setdefault((file, role), (_kind(cell), cell, place))
        if kind != _kind(cell):
            raise InvalidRequestError(
                f"{place}: column {column!r} holds {_told(cell)}, and {_told(other)} in {there}; write all "
                "of them as text, or all as numbers",
                field=column,
            )


def _alike(name: str, role: str) -> str:
    """Leave out what differs between spellings of one name."""
    seen = "".join(one for one in normalize("NFKC", name) if one.isspace() or category(one)[0] != "C")
    seen = " ".join(seen.split())
    return seen.casefold() if role in _WORDS else seen


def _kind(cell: Any) -> str:
    """`True` is a number to Python, and none to whoever writes it."""
    if isinstance(cell, bool):
        return "truth"
    return "text" if isinstance(cell, str) else "number"


def _told(cell: Any) -> str:
    kind = {"truth": "the truth value", "text": "the text", "number": "the number"}[_kind(cell)]
    return f"{kind} {cell!r}"
