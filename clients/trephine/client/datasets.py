"""Datasets of contexts from files: JSON lines or CSV, columns named freely, split in two without overlap."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trephine.client.errors import InvalidRequestError, LocalFileError
from trephine.client.plain_json import parse_json
from trephine.client.types import DatasetExample

SEVERAL = "|"
"""Separates several right or wrong answers in one cell."""
LARGEST_BYTES = 1 << 30
"""Of a file: it is read as a whole."""
_QUOTE = (
    "write a cell that holds a comma, a quote or an end of line in quotes, and a quote in it twice: "
    '"He said ""no"", and left"'
)
_FILL = "write an empty cell where there is nothing, and close every quote"


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which column holds what. The defaults are those of Marks et al.'s agreement data."""

    clean: str = "clean_prefix"
    corrupted: str | None = "patch_prefix"
    answer: str = "clean_answer"
    wrong: str | None = "patch_answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Contexts to find a circuit on, and contexts to measure it on."""

    training: tuple[DatasetExample, ...]
    held_out: tuple[DatasetExample, ...]
    duplicates: int
    """Rows that were left out because they were there already."""
    bound: int = 0
    """Contexts that were left out because others of their texts are on the other side."""


def read_examples(
    path: str | Path, columns: Columns | None = None, *, prefix: str = ""
) -> tuple[DatasetExample, ...]:
    """Read contexts from a `.jsonl` or `.csv` file.

    Args:
        path: UTF-8 text. In CSV the first line names the columns.
        columns: Which column holds what; `corrupted` and `wrong` may be None: single contexts.
        prefix: Put in front of every context, such as the token that the model's texts begin with.

    Raises:
        LocalFileError: If the file cannot be read as such.
        InvalidRequestError: If a column is missing or empty; the message names row and column.
    """
    named, file = columns or Columns(), Path(path).expanduser()
    return tuple(
        _example(row, named, prefix, f"{file.name}, row {n}") for n, row in enumerate(rows_of(file), 1)
    )


def split_examples(
    examples: Sequence[DatasetExample], *, held_out: float = 0.5, seed: int = 0, limit: int | None = None
) -> Split:
    """Shuffle, drop duplicates and divide; the same seed divides in the same way.

    Contexts that have a text in common, their own or their twin's, go to the same side, and so do those that
    are joined through others: the same words with another verb, or another context of the same twin, would
    not be held out.

    Args:
        examples: All contexts.
        held_out: Share that is kept back, above 0 and below 1.
        seed: Of the shuffle.
        limit: Use at most so many contexts.

    Raises:
        InvalidRequestError: If a side would be empty.
    """
    if not 0 < held_out < 1:
        raise InvalidRequestError(f"the held-out share must be above 0 and below 1, got {held_out}")
    unique = list(dict.fromkeys(examples))
    order = _joined(unique)
    random.Random(seed).shuffle(order)  # noqa: S311  a split, not a secret
    total = min(len(unique), limit or len(unique))
    kept_back = round(total * held_out)
    training: list[DatasetExample] = []
    measured: list[DatasetExample] = []
    left = len(unique)
    for group in order:
        left -= len(group)
        room = kept_back - len(measured)
        others = left + len(training)  # who could be trained on if this group were held out
        fits = len(group) <= room or others >= total - kept_back
        (measured if room > 0 and fits else training).extend(group)
    held = tuple(measured[:kept_back])
    kept = tuple(training[: total - len(held)])
    split = Split(
        training=kept,
        held_out=held,
        duplicates=len(examples) - len(unique),
        bound=total - len(kept) - len(held),
    )
    _check_sides(split, held_out)
    return split


def _joined(examples: Sequence[DatasetExample]) -> list[list[DatasetExample]]:
    """Group contexts that have a text in common, directly or through others, in order of appearance."""
    above: dict[str, str] = {}

    def first(text: str) -> str:
        while above[text] != text:
            above[text] = text = above[above[text]]
        return text

    for example in examples:
        texts = [text for text in (example.clean, example.corrupted) if text is not None]
        for text in texts:
            above.setdefault(text, text)
        above[first(texts[-1])] = first(texts[0])
    groups: dict[str, list[DatasetExample]] = {}
    for example in examples:
        groups.setdefault(first(example.clean), []).append(example)
    return list(groups.values())


def _check_sides(split: Split, share: float) -> None:
    if min(len(split.training), len(split.held_out)) < 2:
        raise InvalidRequestError(
            f"{share:.0%} held out leave {len(split.training)} contexts to find a circuit on and "
            f"{len(split.held_out)} to measure it on; both need at least two. Contexts with a text in "
            "common, their own or their twin's, go to the same side. Give more rows, of other texts"
        )


def rows_of(file: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a `.jsonl` or `.csv` file.

    Raises:
        LocalFileError: If the file cannot be read as such, or has more than `LARGEST_BYTES`; of a table also
            if a row has more or fewer cells than there are columns, a quote is not closed, or a column has no
            name or another one's.
    """
    text = _text_of(file)
    if file.suffix == ".csv":
        yield from _csv_rows(file, text)
    elif file.suffix in {".jsonl", ".ndjson"}:
        yield from _json_lines(file, text)
    else:
        raise LocalFileError(f"{file} is neither .jsonl nor .csv; rename or convert it")


def _text_of(file: Path) -> str:
    try:
        size = file.stat().st_size
        if size > LARGEST_BYTES:
            raise LocalFileError(
                f"{file} has {size / 1e9:,.1f} GB, and at most {LARGEST_BYTES / 1e9:,.1f} are read; keep the "
                "rows and columns that are to be used"
            )
        with file.open(encoding="utf-8-sig", newline="") as opened:  # ends of lines within cells stay
            text = opened.read()
    except UnicodeDecodeError as failure:
        line = failure.object[: failure.start].count(b"\n") + 1
        byte = failure.object[failure.start]
        raise LocalFileError(
            f"cannot read {file} as UTF-8 text: line {line} holds the byte 0x{byte:02x}, which is none of "
            "it; save the file as UTF-8"
        ) from failure
    except OSError as failure:
        raise LocalFileError(f"cannot read {file}: {failure.strerror or failure}") from failure
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise LocalFileError(
            f"{file}, line {line} holds a NUL byte, which no text does: it is UTF-16, or no text at all; "
            "save it as UTF-8, or leave the byte out"
        )
    return text


def _csv_rows(file: Path, text: str) -> Iterator[Mapping[str, str]]:
    """Yield rows that have a cell for every column, and no other: what is not quoted would lose its end."""
    names: list[str] = []
    for number, (line, cells) in enumerate(_csv_cells(file, text)):
        if not number:
            names = cells
            _check_names(file, names)
            continue
        if len(cells) != len(names):
            raise LocalFileError(
                f"{file}, row {number} (line {line}) has {len(cells)} cells, the first line names "
                f"{len(names)} ({', '.join(names)}): {_QUOTE if len(cells) > len(names) else _FILL}"
            )
        if not (names[0].strip() or cells[0].isdecimal()):
            raise LocalFileError(
                f"{file}, row {number} (line {line}) begins with {cells[0]!r} in a column without a name, "
                "which may hold row numbers alone; name the column in the first line, or leave it out"
            )
        yield dict(zip(names, cells, strict=True))


def _csv_cells(file: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield what is not blank, with the number of the line that it begins on."""
    reader, number = csv.reader(io.StringIO(text, newline=""), strict=True), 0
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as failure:
            place = f"row {number} (line {line})" if number else "the first line"
            raise LocalFileError(f"{file}, {place} is no CSV: {failure}; {_QUOTE}") from failure
        if cells is None:
            return
        if cells:
            yield line, cells
            number += 1


def _check_names(file: Path, names: Sequence[str]) -> None:
    """Refuse a name that is missing or there twice; the first column may be one of row numbers."""
    for number, name in enumerate(names, 1):
        if not name.strip() and number > 1:
            raise LocalFileError(
                f"{file}: column {number} has no name in the first line; name it, or leave it out"
            )
        if name in names[: number - 1]:
            raise LocalFileError(
                f"{file}: the first line names {name!r} twice, columns {names.index(name) + 1} and {number}, "
                "and one would hide the other; rename one or leave it out"
            )


def _json_lines(file: Path, text: str) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(text.split("\n"), 1):  # a JSON string may hold U+2028
        if not line.strip():
            continue
        try:
            row = parse_json(line, object_pairs_hook=_named_once)
        except ValueError as failure:
            raise LocalFileError(f"{file}, line {number} is no JSON: {failure}") from failure
        if not isinstance(row, dict):
            raise LocalFileError(f"{file}, line {number} is no JSON object")
        yield row


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object, and refuse a name that is there twice: the first value would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        again = next(name for place, (name, _) in enumerate(pairs) if name in dict(pairs[:place]))
        raise ValueError(f"it names {again!r} twice; leave one of the two out")
    return found


def _example(row: Mapping[str, Any], columns: Columns, prefix: str, place: str) -> DatasetExample:
    corrupted = None if columns.corrupted is None else _text(row, columns.corrupted, place)
    wrong = () if columns.wrong is None else _several(_text(row, columns.wrong, place))
    return DatasetExample(
        clean=prefix + _text(row, columns.clean, place),
        corrupted=None if corrupted is None else prefix + corrupted,
        answers=_several(_text(row, columns.answer, place)),
        wrong=wrong,
    )


def _several(cell: str) -> tuple[str, ...]:
    return tuple(part for part in cell.split(SEVERAL) if part)


def _text(row: Mapping[str, Any], column: str, place: str) -> str:
    value = row.get(column)
    if column not in row:
        there = ", ".join(str(name) for name in row)
        raise InvalidRequestError(
            f"{place} has no column {column!r}; it has {there}. Say which column holds what "
            "(--clean, --corrupted, --answer, --wrong; an empty name for none)",
            field=column,
        )
    if not isinstance(value, str) or not value:
        raise InvalidRequestError(f"{place}: column {column!r} is not a text, or empty", field=column)
    return value
