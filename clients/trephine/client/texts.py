"""Texts from files: one a line, or a column of JSON lines or CSV, split in two without overlap."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trephine.client.datasets import rows_of
from trephine.client.errors import InvalidRequestError, LocalFileError


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSplit:
    """Texts to find a circuit on, and texts to check it on."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]
    duplicates: int
    """Texts that were left out because they were there already."""


def read_texts(path: str | Path, column: str = "text", *, prefix: str = "") -> tuple[str, ...]:
    """Read texts from a `.txt` file, one a line that is not blank, or a column of a `.jsonl` or `.csv` file.

    Args:
        path: UTF-8 text.
        column: Which column holds the text; of a `.txt` file it is not looked at.
        prefix: Put in front of every text, such as the token that the model's texts begin with.

    Raises:
        LocalFileError: If the file cannot be read as such.
        InvalidRequestError: If a row has no such column, or it is no text, or empty.
    """
    file = Path(path).expanduser()
    if file.suffix == ".txt":
        return tuple(prefix + line for line in _lines(file) if line.strip())
    found = []
    for number, row in enumerate(rows_of(file), 1):
        text = row.get(column)
        if not isinstance(text, str) or not text:
            there = ", ".join(str(name) for name in row)
            raise InvalidRequestError(
                f"{file.name}, row {number} has no text in column {column!r}; it has {there}. Say which "
                "column holds the text with --column",
                field="column",
            )
        found.append(prefix + text)
    return tuple(found)


def split_texts(
    texts: Sequence[str], *, held_out: float = 0.3, seed: int = 0, limit: int | None = None
) -> TextSplit:
    """Shuffle, drop duplicates and divide; the same seed divides in the same way.

    Args:
        texts: All of them.
        held_out: Share that is kept back, above 0 and below 1.
        seed: Of the shuffle.
        limit: Use at most so many texts.

    Raises:
        InvalidRequestError: If a side would have fewer than two texts.
    """
    if not 0 < held_out < 1:
        raise InvalidRequestError(f"the held-out share must be above 0 and below 1, got {held_out}")
    unique = list(dict.fromkeys(texts))
    random.Random(seed).shuffle(unique)  # noqa: S311  a split, not a secret
    chosen = unique[: limit or len(unique)]
    kept_back = round(len(chosen) * held_out)
    split = TextSplit(
        training=tuple(chosen[kept_back:]),
        held_out=tuple(chosen[:kept_back]),
        duplicates=len(texts) - len(unique),
    )
    if min(len(split.training), len(split.held_out)) < 2:
        raise InvalidRequestError(
            f"{held_out:.0%} held out leave {len(split.training)} texts to find a circuit on and "
            f"{len(split.held_out)} to check it on; both need at least two. Give more texts"
        )
    return split


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as failure:
        raise LocalFileError(f"cannot read {file} as UTF-8 text: {failure}") from failure
