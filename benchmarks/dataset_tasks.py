"""Behaviours to find circuits of: subject-verb agreement, greater-than, indirect objects; split in two.

Every context begins with the token that SmolLM2's texts begin with. The tokenizer splits numbers into digits,
so that greater-than asks for the tens digit: every larger one is right, every smaller one wrong.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from trephine.client.datasets import Split, read_examples, rows_of, split_examples
from trephine.client.types import DatasetExample

BEGIN = "<|im_start|>"
AGREEMENT = ("simple", "nounpp", "within_rc")
TASKS = (*AGREEMENT, "greater_than", "ioi")
"""All tasks, by name."""

Tokens = Callable[[str], int]


def read_task(name: str, data: Path, tokens: Tokens) -> tuple[DatasetExample, ...]:
    """Read a task's usable contexts: every answer one token, all of the most frequent number of tokens.

    Args:
        name: Of `TASKS`.
        data: The folder with `agreement`, `greater_than.csv` and `ioi.csv`.
        tokens: Counts a text's tokens.
    """
    if name in AGREEMENT:
        found = read_examples(data / "agreement" / f"{name}.jsonl", prefix=BEGIN)
    elif name == "greater_than":
        found = _greater_than(data / "greater_than.csv")
    else:
        found = _indirect_objects(data / "ioi.csv")
    usable = [one for one in found if _is_usable(one, tokens)]
    lengths = Counter(tokens(one.clean) for one in usable)
    (length, _), *_ = lengths.most_common(1)
    return tuple(one for one in usable if tokens(one.clean) == length)


def split_task(name: str, data: Path, tokens: Tokens, *, training: int, held_out: int, seed: int) -> Split:
    """Divide a task; no text is on both sides, be it a context or the twin of one."""
    total = training + held_out
    usable = read_task(name, data, tokens)
    return split_examples(usable, held_out=held_out / total, seed=seed, limit=total)


def _is_usable(one: DatasetExample, tokens: Tokens) -> bool:
    answers = all(tokens(text) == 1 for text in (*one.answers, *one.wrong))
    return answers and (one.corrupted is None or tokens(one.clean) == tokens(one.corrupted))


def _greater_than(file: Path) -> tuple[DatasetExample, ...]:
    found = []
    for row in rows_of(file):
        tens = int(row["label"].zfill(2)[0])
        if 2 <= tens <= 7:  # with few digits on a side there is little to prefer
            found.append(
                DatasetExample(
                    clean=BEGIN + row["clean"],
                    corrupted=BEGIN + row["corrupted"],
                    answers=tuple(str(digit) for digit in range(tens + 1, 10)),
                    wrong=tuple(str(digit) for digit in range(tens)),
                )
            )
    return tuple(found)


def _indirect_objects(file: Path) -> tuple[DatasetExample, ...]:
    found = []
    for row in rows_of(file):
        names = Counter(re.findall(r"\b[A-Z][a-z]+\b", row["clean"]))
        subjects = [name for name, count in names.items() if count == 2]
        others = [name for name, count in names.items() if count == 1 and name not in _NO_NAMES]
        if len(others) == len(subjects) == 1:
            found.append(
                DatasetExample(
                    clean=BEGIN + row["clean"],
                    corrupted=BEGIN + row["corrupted_hard"],
                    answers=(f" {others[0]}",),
                    wrong=(f" {subjects[0]}",),
                )
            )
    return tuple(found)


_NO_NAMES = {"After", "Then", "When", "While", "Friends", "The", "As", "Once", "Afterwards"}
