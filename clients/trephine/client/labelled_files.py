"""Labelled texts and examples of an attribute from `.jsonl` and `.csv` files, folders and saved data sets."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trephine.client.datasets import rows_of
from trephine.client.errors import InvalidRequestError, LocalFileError
from trephine.client.saved_datasets import is_saved, saved_rows
from trephine.client.types import AttributeText, LabelledText

Rows = list[tuple[str, Mapping[str, Any]]]
"""Every row after the words that name its place."""
OPTIONAL = ("attribute", "twin", "environment")
"""What a text need not have: an empty cell, a null and a missing key are None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextColumns:
    """Which column holds what; None: there is none."""

    text: str = "text"
    label: str = "label"
    attribute: str | None = None
    twin: str | None = None
    environment: str | None = None


def read_texts(
    path: str | Path, columns: TextColumns | None = None, *, lacking: Collection[str] = ()
) -> tuple[LabelledText, ...]:
    """Read labelled texts from a `.jsonl` or `.csv` file, or from a folder.

    A folder holds such files, read in order of name, or is one that `datasets` saved: there a column of class
    numbers reads as its classes' names. A saved folder of several splits is not read whole: name a split's.

    Args:
        path: File or folder.
        columns: Which column holds what. Attribute, twin and environment may be empty in a row.
        lacking: Those of `OPTIONAL` whose column may be absent from every row; of the others that is an
            error, since a misspelt name would drop all of them.

    Raises:
        LocalFileError: If a file cannot be read as such, or a folder holds none.
        InvalidRequestError: If a column is missing; the message names row and column.
    """
    named, rows = columns or TextColumns(), _rows(Path(path).expanduser())
    for role in OPTIONAL:
        name = getattr(named, role)
        if rows and name is not None and role not in lacking and not any(name in row for _, row in rows):
            raise _no_column(rows[0][1], name, rows[0][0])
    return tuple(
        LabelledText(
            text=_cell(row, named.text, place),
            label=_cell(row, named.label, place),
            attribute=_optional(row, named.attribute, place),
            twin=_optional(row, named.twin, place),
            environment=_optional(row, named.environment, place),
        )
        for place, row in rows
    )


def read_attribute_texts(path: str | Path, *, text: str, attribute: str) -> tuple[AttributeText, ...]:
    """Read examples of an attribute, with the same errors."""
    return tuple(
        AttributeText(text=_cell(row, text, place), attribute=_cell(row, attribute, place))
        for place, row in _rows(Path(path).expanduser())
    )


def _rows(path: Path) -> Rows:
    if not path.is_dir():
        return [(f"{path.name}, row {n}", row) for n, row in enumerate(rows_of(path), 1)]
    if is_saved(path):
        return [(f"{path.name}, row {n}", row) for n, row in enumerate(saved_rows(path), 1)]
    files = sorted(file for file in path.iterdir() if file.suffix in {".jsonl", ".ndjson", ".csv"})
    if not files:
        raise LocalFileError(
            f"{path} holds no .jsonl or .csv file, and is no folder that `datasets` saved; save the data set "
            "as JSON lines into it"
        )
    return [(f"{file.name}, row {n}", row) for file in files for n, row in enumerate(rows_of(file), 1)]


def _optional(row: Mapping[str, Any], name: str | None, place: str) -> str | None:
    value = None if name is None else row.get(name)
    if name is None or value is None or (isinstance(value, str) and not value.strip()):
        return None
    return _cell(row, name, place)


def _cell(row: Mapping[str, Any], name: str, place: str) -> str:
    if name not in row:
        raise _no_column(row, name, place)
    value = row[name]
    if value is None or value == "":
        raise InvalidRequestError(f"{place}: column {name!r} is empty", field=name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a class number, as tables with gaps store it
    if not isinstance(value, str | int):
        raise InvalidRequestError(
            f"{place}: column {name!r} holds {value!r}, which is neither a text nor a whole number; write it "
            "as text",
            field=name,
        )
    return str(value)


def _no_column(row: Mapping[str, Any], name: str, place: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{place} has no column {name!r}; it has {', '.join(map(str, row)) or 'none'}. Say which column "
        "holds what",
        field=name,
    )
