"""Labelled texts and examples of an attribute from `.jsonl` and `.csv` files, folders and saved data sets.

A row is a text with its label, or a comparison of two texts in the usual form of preference data.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trephine.client.datasets import rows_of
from trephine.client.errors import InvalidRequestError, LocalFileError
from trephine.client.saved_datasets import is_saved, saved_rows
from trephine.client.types import AttributeText, LabelledText

_SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip
"""What names of files call splits."""
Rows = list[tuple[str, Mapping[str, Any]]]
"""Every row after the words that name its place."""
OPTIONAL = ("attribute", "twin", "environment", "pair")
"""What a text need not have: an empty cell, a null and a missing key are None."""
CHOSEN, REJECTED, PROMPT = "chosen", "rejected", "prompt"
"""Columns of a comparison; the first two are the labels of its texts as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextColumns:
    """Which column holds what; None: there is none."""

    text: str = "text"
    label: str = "label"
    attribute: str | None = None
    twin: str | None = None
    environment: str | None = None
    pair: str | None = None


def read_texts(
    path: str | Path, columns: TextColumns | None = None, *, lacking: Collection[str] = ()
) -> tuple[LabelledText, ...]:
    """Read labelled texts from a `.jsonl` or `.csv` file, or from a folder.

    A folder holds such files, read in order of name, or is one that `datasets` saved: there a column of class
    numbers reads as its classes' names. A folder of several splits is not read whole: name one split's.

    A row without the column of the text, but with `chosen` and `rejected`, is a comparison: two texts with
    these labels, in one pair, each behind the `prompt` if there is one (with a space between, where neither
    side has any). What a column `NAME` tells of a text is told of either by `chosen_NAME` and
    `rejected_NAME`, or of both by `NAME`.

    Args:
        path: File or folder.
        columns: Which column holds what. Attribute, twin, environment and pair may be empty in a row.
        lacking: Those of `OPTIONAL` whose column may be absent from every row; of the others that is an
            error, since a misspelt name would drop all of them.

    Raises:
        LocalFileError: If a file cannot be read as such, or a folder holds none.
        InvalidRequestError: If a column is missing; the message names row and column.
    """
    named, rows = columns or TextColumns(), _rows(Path(path).expanduser())
    for role in OPTIONAL:
        name = getattr(named, role)
        if not rows or name is None or role in lacking:
            continue
        if not any(_tells(row, name) for _, row in rows):
            raise _no_column(rows[0][1], name, rows[0][0])
    return tuple(one for place, row in rows for one in _texts(row, named, place))


def _texts(row: Mapping[str, Any], named: TextColumns, place: str) -> Iterator[LabelledText]:
    """Read the text of a row, or both of a comparison."""
    if named.text not in row and CHOSEN in row and REJECTED in row:
        yield from _compared(row, named, place)
        return
    yield LabelledText(
        text=_cell(row, named.text, place),
        label=_cell(row, named.label, place),
        attribute=_optional(row, named.attribute, place),
        twin=_optional(row, named.twin, place),
        environment=_optional(row, named.environment, place),
        pair=_optional(row, named.pair, place),
    )


def _compared(row: Mapping[str, Any], named: TextColumns, place: str) -> Iterator[LabelledText]:
    prompt = _optional(row, PROMPT, place) or ""
    replies = {side: _cell(row, side, place) for side in (CHOSEN, REJECTED)}
    # Files of two splits may have one name; the texts tell their rows apart.
    digest = hashlib.sha256("\0".join((prompt, *replies.values())).encode()).hexdigest()[:8]
    for side, reply in replies.items():
        twin = _of_side(row, named.twin, side, place)
        yield LabelledText(
            text=_behind(prompt, reply),
            label=side,
            attribute=_of_side(row, named.attribute, side, place),
            twin=None if twin is None else _behind(prompt, twin),
            environment=_of_side(row, named.environment, side, place),
            pair=f"{place} ({digest})",
        )


def _behind(prompt: str, reply: str) -> str:
    """Put a reply behind its prompt, with a space where neither has any between."""
    parted = not prompt or prompt[-1].isspace() or reply[0].isspace()
    return prompt + ("" if parted else " ") + reply


def _of_side(row: Mapping[str, Any], name: str | None, side: str, place: str) -> str | None:
    """Read what is told of one text of a comparison, or of both."""
    own = f"{side}_{name}"
    return _optional(row, own if own in row else name, place)


def _tells(row: Mapping[str, Any], name: str) -> bool:
    return any(one in row for one in (name, f"{CHOSEN}_{name}", f"{REJECTED}_{name}"))


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
    splits = sorted({split for file in files if (split := _split_of(file)) is not None})
    if len(splits) > 1:
        raise LocalFileError(
            f"{path} holds the splits {', '.join(splits)}; give the file of one of them, or a folder of "
            "its files alone"
        )
    return [(f"{file.name}, row {n}", row) for file in files for n, row in enumerate(rows_of(file), 1)]


def _split_of(file: Path) -> str | None:
    """The split that a file's name begins with, as `train-00000-of-00002` does; None: it names none."""
    return _SPLITS.get(re.split(r"[^a-z]", file.stem.lower(), maxsplit=1)[0])


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
