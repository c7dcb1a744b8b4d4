"""Labelled texts and examples of an attribute from `.jsonl` and `.csv` files, folders and saved data sets.

A row is a text with its label, or a comparison of two texts in the usual form of preference data.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from trephine.client.datasets import rows_of
from trephine.client.errors import InvalidRequestError, LocalFileError
from trephine.client.labelled_names import NamesRead
from trephine.client.saved_datasets import is_saved, saved_rows
from trephine.client.types import AttributeText, LabelledText

_SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
}  # fmt: skip
"""What names of files call splits."""
Row = tuple[str, str, Mapping[str, Any]]
"""The file, the words that name the row's place, and its cells."""
MOST_ROWS = 1 << 20
"""Of one file or folder: more than any request takes, and few enough to be held."""
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

    def __post_init__(self) -> None:
        roles = {role: getattr(self, role) for role in ("text", "label", *OPTIONAL)}
        for (one, name), (other, also) in combinations(roles.items(), 2):
            if name is not None and name == also and {one, other} != {"environment", "pair"}:
                raise InvalidRequestError(
                    f"the column {name!r} is named as {one} and as {other}, and it holds one of the two; "
                    "name the other's column, or leave it out",
                    field=name,
                )


def read_texts(
    path: str | Path, columns: TextColumns | None = None, *, lacking: Collection[str] = ()
) -> tuple[LabelledText, ...]:
    """Do what `read_placed_texts` does, with the texts alone."""
    return tuple(one for _, one in read_placed_texts(path, columns, lacking=lacking))


def read_placed_texts(
    path: str | Path, columns: TextColumns | None = None, *, lacking: Collection[str] = ()
) -> tuple[tuple[str, LabelledText], ...]:
    """Read labelled texts from a `.jsonl` or `.csv` file, or from a folder, each behind its file and row.

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
        InvalidRequestError: If a column is missing, or a cell holds nothing, or a name is written in two
            ways; the message names row and column.
    """
    named, rows = columns or TextColumns(), _rows(Path(path).expanduser())
    for role in OPTIONAL:
        name = getattr(named, role)
        if name is None or role in lacking:
            continue
        if not any(_tells(row, name) for _, _, row in rows):
            raise _no_column(rows[0][2], name, rows[0][1])
    names = NamesRead()
    return tuple((row[1], one) for row in rows for one in _texts(row, named, names))


def _texts(row: Row, named: TextColumns, names: NamesRead) -> Iterator[LabelledText]:
    """Read the text of a row, or both of a comparison."""
    _, place, cells = row
    if named.text not in cells and CHOSEN in cells and REJECTED in cells:
        yield from _compared(row, named, names)
        return
    yield LabelledText(
        text=_cell(cells, named.text, place),
        label=_named(row, named.label, "label", names),
        attribute=_name(row, named.attribute, "attribute", names),
        twin=_optional(cells, named.twin, place),
        environment=_name(row, named.environment, "environment", names),
        pair=_name(row, named.pair, "pair", names),
    )


def _compared(line: Row, named: TextColumns, names: NamesRead) -> Iterator[LabelledText]:
    _, place, row = line
    prompt = _optional(row, PROMPT, place) or ""
    replies = {side: _cell(row, side, place) for side in (CHOSEN, REJECTED)}
    # Files of two splits may have one name; the texts tell their rows apart.
    digest = hashlib.sha256("\0".join((prompt, *replies.values())).encode()).hexdigest()[:8]
    for side, reply in replies.items():
        twin = _optional(row, _of_side(row, named.twin, side), place)
        yield LabelledText(
            text=_behind(prompt, reply),
            label=side,
            attribute=_name(line, _of_side(row, named.attribute, side), "attribute", names),
            twin=None if twin is None else _behind(prompt, twin),
            environment=_name(line, _of_side(row, named.environment, side), "environment", names),
            pair=f"{place} ({digest})",
        )


def _behind(prompt: str, reply: str) -> str:
    """Put a reply behind its prompt, with a space where neither has any between."""
    parted = not prompt or prompt[-1].isspace() or reply[0].isspace()
    return prompt + ("" if parted else " ") + reply


def _of_side(row: Mapping[str, Any], name: str | None, side: str) -> str | None:
    """Return the column of one text of a comparison, or of both."""
    own = f"{side}_{name}"
    return own if own in row else name


def _tells(row: Mapping[str, Any], name: str) -> bool:
    return any(one in row for one in (name, f"{CHOSEN}_{name}", f"{REJECTED}_{name}"))


def read_attribute_texts(path: str | Path, *, text: str, attribute: str) -> tuple[AttributeText, ...]:
    """Read examples of an attribute, with the same errors."""
    return tuple(one for _, one in read_placed_attribute_texts(path, text=text, attribute=attribute))


def read_placed_attribute_texts(
    path: str | Path, *, text: str, attribute: str
) -> tuple[tuple[str, AttributeText], ...]:
    """Read examples of an attribute, each behind its file and row, with the same errors."""
    if text == attribute:
        raise InvalidRequestError(
            f"the column {text!r} is named as text and as attribute; name the other's column", field=text
        )
    names, found = NamesRead(), list[tuple[str, AttributeText]]()
    for row in _rows(Path(path).expanduser()):
        _, place, cells = row
        value = _named(row, attribute, "attribute", names)
        found.append((place, AttributeText(text=_cell(cells, text, place), attribute=value)))
    return tuple(found)


def read_swaps(path: str | Path) -> tuple[tuple[str, str], ...]:
    """Read a lexicon: rows with `first` and `second`, with the same errors."""
    rows = _rows(Path(path).expanduser())
    return tuple((_cell(row, "first", place), _cell(row, "second", place)) for _, place, row in rows)


def _rows(path: Path) -> list[Row]:
    found = list(islice(_every_row(path), MOST_ROWS + 1))
    if not found:
        raise LocalFileError(f"{path} holds no row; write one per text, or leave the file out")
    if len(found) > MOST_ROWS:
        raise LocalFileError(
            f"{path} holds more than {MOST_ROWS:,} rows, and no request takes so many; keep the rows that "
            "are to be used"
        )
    return found


def _every_row(path: Path) -> Iterator[Row]:
    if not path.is_dir() or is_saved(path):
        rows = saved_rows(path) if path.is_dir() else rows_of(path)
        yield from ((path.name, f"{path.name}, row {n}", row) for n, row in enumerate(rows, 1))
        return
    for file in _files(path):
        yield from ((file.name, f"{file.name}, row {n}", row) for n, row in enumerate(rows_of(file), 1))


def _files(path: Path) -> list[Path]:
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
    return files


def _split_of(file: Path) -> str | None:
    """The split that a file's name begins with, as `train-00000-of-00002` does; None: it names none."""
    return _SPLITS.get(re.split(r"[^a-z]", file.stem.lower(), maxsplit=1)[0])


def _name(row: Row, column: str | None, role: str, names: NamesRead) -> str | None:
    """Read a name that a row need not have."""
    found = _optional(row[2], column, row[1])
    return None if found is None or column is None else _named(row, column, role, names)


def _named(row: Row, column: str, role: str, names: NamesRead) -> str:
    file, place, cells = row
    name = _cell(cells, column, place)
    names.add(role, name, cell=cells[column], column=column, file=file, place=place)
    return name


def _optional(row: Mapping[str, Any], name: str | None, place: str) -> str | None:
    value = None if name is None else row.get(name)
    if name is None or value is None or (isinstance(value, str) and not value.strip()):
        return None
    return _cell(row, name, place)


def _cell(row: Mapping[str, Any], name: str, place: str) -> str:
    if name not in row:
        raise _no_column(row, name, place)
    value = row[name]
    if value is None or (isinstance(value, str) and not value.strip()):
        held = "holds blanks alone" if value else "is empty"
        raise InvalidRequestError(
            f"{place}: column {name!r} {held}; write what is meant there, or leave the row out", field=name
        )
    if isinstance(value, str) and "\0" in value:
        raise InvalidRequestError(
            f"{place}: column {name!r} holds a NUL character in {shortened(value)}; leave it out", field=name
        )
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a class number, as tables with gaps store it
    if not isinstance(value, str | int):
        raise InvalidRequestError(
            f"{place}: column {name!r} holds {shortened(value)}, which is neither a text nor a whole number; "
            "write it as text",
            field=name,
        )
    return str(value)


def _no_column(row: Mapping[str, Any], name: str, place: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{place} has no column {name!r}; it has {_listed(row)}. Say which column holds what",
        field=name,
    )


def _listed(row: Mapping[str, Any]) -> str:
    """Name the columns; one that has blanks around it, or cannot be seen, in quotes."""
    names = [str(name) for name in row]
    return (
        ", ".join(name if name.isprintable() and name.split() == [name] else ascii(name) for name in names)
        or "none"
    )
