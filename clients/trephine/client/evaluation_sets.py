"""Texts and items that edits are measured on: what they are to change, and what they must leave alone.

A `.txt` file holds texts between blank lines. A line of a `.jsonl` file, or a row of a `.csv` file, holds

    {"text": "..."}
    {"prompt": "...", "choices": [" a", " b"], "answer": 0}
    {"prompt": "...", "answer": " a", "wrong": " b"}            several wrong ones: " b| c"
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trephine.client.datasets import SEVERAL, rows_of
from trephine.client.errors import InvalidRequestError, LocalFileError
from trephine.client.types import ChoiceItem, EvaluationRole, EvaluationSet

_BLANK_LINES = re.compile(r"\n\s*\n")


def read_set(
    path: str | Path, role: EvaluationRole | str, *, name: str | None = None, limit: int | None = None
) -> EvaluationSet:
    """Read a set from a `.txt`, `.jsonl` or `.csv` file.

    Args:
        path: UTF-8 text.
        role: `target` or `retain`.
        name: Unset: the file's name without its ending.
        limit: Only the first so many.

    Raises:
        LocalFileError: If the file cannot be read as such.
        InvalidRequestError: If a row is neither a text nor an item, or both occur; the message names the row.
    """
    file = Path(path).expanduser()
    chosen = EvaluationRole(role)
    if file.suffix == ".txt":
        found = EvaluationSet(name=name or file.stem, role=chosen, texts=_paragraphs(file)[:limit])
    else:
        read = [_row(row, f"{file.name}, row {n}") for n, row in enumerate(rows_of(file), 1)][:limit]
        texts = tuple(one for one in read if isinstance(one, str))
        items = tuple(one for one in read if isinstance(one, ChoiceItem))
        found = EvaluationSet(name=name or file.stem, role=chosen, texts=texts, items=items)
    if bool(found.texts) == bool(found.items):
        raise InvalidRequestError(f"{file.name} holds no texts and no items, or both; one file, one kind")
    return found


def item(prompt: str, answer: str, *wrong: str) -> ChoiceItem:
    """An item by its right and wrong answers."""
    return ChoiceItem(prompt=prompt, choices=(answer, *wrong), answer=0)


def _paragraphs(file: Path) -> tuple[str, ...]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as failure:
        raise LocalFileError(f"cannot read {file} as UTF-8 text: {failure}") from failure
    return tuple(part.strip("\n") for part in _BLANK_LINES.split(text) if part.strip())


def _row(row: Mapping[str, Any], place: str) -> str | ChoiceItem:
    if isinstance(row.get("text"), str) and row["text"]:
        return str(row["text"])
    prompt, choices, answer = row.get("prompt"), row.get("choices"), row.get("answer")
    if isinstance(prompt, str) and isinstance(choices, list) and isinstance(answer, int):
        return ChoiceItem(prompt=prompt, choices=tuple(map(str, choices)), answer=answer)
    wrong = row.get("wrong")
    if isinstance(prompt, str) and isinstance(answer, str) and isinstance(wrong, str):
        return item(prompt, answer, *(part for part in wrong.split(SEVERAL) if part))
    raise InvalidRequestError(
        f"{place} is neither a text nor an item; write text, or prompt with choices and answer, or prompt "
        "with answer and wrong"
    )
