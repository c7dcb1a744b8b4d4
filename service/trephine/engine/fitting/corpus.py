"""Texts to fit on: a plain text file, JSONL with a `text` column, or a folder that `datasets` wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from trephine.domain.errors import BrokenCorpusError, UnsupportedOptionError

COLUMN = "text"
_JSON = (".jsonl", ".ndjson", ".json")
_SNIFFED_BYTES = 1 << 16
_JUNK_SHARE = 0.02
"""Control characters beyond this share of the first bytes are no text."""
_BLOCK_CHARACTERS = 1 << 20
_CONTROL = frozenset(range(32)) - {9, 10, 12, 13, 27}


def has_documents(path: Path) -> bool:
    """Say whether pieces are documents of their own; a text file is one, read in blocks."""
    return path.is_dir() or path.suffix in _JSON


def documents(path: Path) -> Iterator[str]:
    """Read the documents of a corpus one by one; long text files come in blocks.

    Raises:
        BrokenCorpusError: If it is no text, or not of the promised form.
        UnsupportedOptionError: If it is a datasets folder and `datasets` is not installed.
    """
    if path.is_dir():
        return _dataset(path)
    if not path.is_file():
        raise BrokenCorpusError("the corpus does not exist any more; upload it again", field="corpus")
    _refuse_junk(path)
    return _json_lines(path) if path.suffix in _JSON else _blocks(path)


def _refuse_junk(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(_SNIFFED_BYTES)
    if not head.strip():
        raise BrokenCorpusError("the corpus is empty; give a text to fit on", field="corpus")
    junk = sum(byte in _CONTROL for byte in head) / len(head)
    if b"\0" in head or junk > _JUNK_SHARE:
        raise BrokenCorpusError(
            "the corpus holds binary data, not text; give UTF-8 text, or JSONL with a `text` column",
            field="corpus",
        )


def _blocks(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8") as file:
            while block := file.read(_BLOCK_CHARACTERS):
                yield block + file.readline()
    except UnicodeDecodeError as error:
        raise BrokenCorpusError(
            f"the corpus is not UTF-8 (byte {error.start} of a block); convert it first", field="corpus"
        ) from error


def _json_lines(path: Path) -> Iterator[str]:
    number = 0
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _text_of(json.loads(line), number)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BrokenCorpusError(
            f"line {number} of the corpus is no JSON; every line must be an object with `{COLUMN}`",
            field="corpus",
            line=number,
        ) from error


def _text_of(record: object, number: int) -> str:
    text = record.get(COLUMN) if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise BrokenCorpusError(
            f"record {number} of the corpus has no string under `{COLUMN}`; rename the column",
            field="corpus",
            line=number,
        )
    return text


def _dataset(path: Path) -> Iterator[str]:
    if find_spec("datasets") is None:
        raise UnsupportedOptionError(
            "a datasets folder needs the `datasets` package: install trephine[fit], or give JSONL",
            field="corpus",
        )
    from datasets import Dataset, DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise BrokenCorpusError(
            f"the folder is no saved dataset: {error}. Write it with Dataset.save_to_disk", field="corpus"
        ) from error
    parts: list[Dataset] = list(loaded.values()) if isinstance(loaded, DatasetDict) else [loaded]
    for part in parts:
        for number, record in enumerate(part):
            yield _text_of(record, number)
