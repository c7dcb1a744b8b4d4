"""Files of labelled texts on the command line: read, and told by row where a server calls texts by number."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from trephine.client.cli.output import Output
from trephine.client.errors import InvalidRequestError, TrephineError
from trephine.client.labelled_files import (
    OPTIONAL,
    TextColumns,
    read_placed_attribute_texts,
    read_placed_texts,
)
from trephine.client.types import AttributeText, LabelledText

_NUMBERED = (
    re.compile(r"\b(training|validation|test) text (\d+)\b"),
    re.compile(r"\b(training|validation|test|attribute_texts)\[(\d+)\]"),
)
_EXAMPLE = re.compile(r"\battribute example (\d+)\b")


class TextFiles:
    """What was read from files, split by split, and where every text stands."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._places: dict[str, tuple[str, ...]] = {}

    def split(
        self, name: str, path: Path | None, columns: TextColumns, lacking: Collection[str]
    ) -> tuple[LabelledText, ...]:
        """Read a file of texts, and say of which named column some or all texts have nothing.

        Args:
            name: `training`, `validation` or `test`.
            path: File or folder; None: there is none.
            columns: Which column holds what.
            lacking: Roles whose column the file need not have.
        """
        if path is None:
            return ()
        read = read_placed_texts(path, columns, lacking=lacking)
        self._places[name] = tuple(place for place, _ in read)
        for role in OPTIONAL:
            column = getattr(columns, role)
            told = sum(getattr(one, role) is not None for _, one in read)
            if column is not None and told < len(read):
                self._output.note(
                    f"{path.name} tells the {role} of {told} of {len(read)} texts (column {column!r})"
                )
        return tuple(one for _, one in read)

    def examples(self, path: Path | None, text: str, attribute: str | None) -> tuple[AttributeText, ...]:
        """Read examples of the attribute.

        Raises:
            InvalidRequestError: If no column is named for it.
        """
        if path is None:
            return ()
        if attribute is None:
            raise InvalidRequestError(
                "--attribute-texts needs --attribute-column, the column with the attribute", field="attribute"
            )
        read = read_placed_attribute_texts(path, text=text, attribute=attribute)
        self._places["attribute_texts"] = tuple(place for place, _ in read)
        return tuple(one for _, one in read)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Let an error that calls texts by their number say in which file and row they stand.

        Raises:
            TrephineError: What was raised inside, with these words behind its own.
        """
        try:
            yield
        except TrephineError as failure:
            named = _named(failure.message, failure.field, self._places)
            if named:
                failure.message = f"{failure.message.rstrip('.')}. Counted from 0, {', '.join(named)}"
                failure.args = (failure.message,)
            raise


def _named(message: str, field: str, places: Mapping[str, Sequence[str]]) -> list[str]:
    """Say where every text that is named stands, in the order in which they are named."""
    said = f"{message} {field}"
    named = [(match.start(), match[1], int(match[2])) for form in _NUMBERED for match in form.finditer(said)]
    named += [(match.start(), "attribute_texts", int(match[1])) for match in _EXAMPLE.finditer(said)]
    found = dict.fromkeys((split, number) for _, split, number in sorted(named))
    return [
        f"{_called(split)} {number} stands in {places[split][number]}"
        for split, number in found
        if number < len(places.get(split, ()))
    ]


def _called(split: str) -> str:
    return "attribute example" if split == "attribute_texts" else f"{split} text"
