"""Datasets from files: columns, bad rows, splits without overlap."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from trephine.client.datasets import Columns, read_examples, split_examples
from trephine.client.errors import InvalidRequestError, LocalFileError
from trephine.client.types import DatasetExample

ROW = {"clean_prefix": "The man", "patch_prefix": "The men", "clean_answer": " is", "patch_answer": " are"}


def lines(folder: Path, *rows: object) -> Path:
    """Write JSON lines."""
    file = folder / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return file


def test_marks_columns_are_the_default(tmp_path: Path):
    """Blank lines are skipped, the prefix goes in front of both sides."""
    assert read_examples(lines(tmp_path, ROW), prefix="<s>") == (
        DatasetExample(clean="<s>The man", corrupted="<s>The men", answers=(" is",), wrong=(" are",)),
    )


def test_csv_with_columns_of_other_names_and_several_answers(tmp_path: Path):
    """No twin, no wrong answer, two right ones."""
    file = tmp_path / "rows.csv"
    file.write_text('text,right\n"One, two",5|6\n')
    columns = Columns(clean="text", corrupted=None, answer="right", wrong=None)
    assert read_examples(file, columns) == (DatasetExample(clean="One, two", answers=("5", "6")),)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([ROW, {"clean_prefix": "The man"}], "row 2 has no column 'patch_prefix'"),
        ([{**ROW, "clean_answer": ""}], "row 1: column 'clean_answer' is not a text, or empty"),
        ([{**ROW, "clean_prefix": 3}], "row 1: column 'clean_prefix' is not a text, or empty"),
    ],
)
def test_bad_rows_are_told_by_row_and_column(tmp_path: Path, rows: list[object], words: str):
    """What is missing, where, and what there is."""
    with pytest.raises(InvalidRequestError, match=words):
        read_examples(lines(tmp_path, *rows))


@pytest.mark.parametrize(
    ("name", "text"), [("a.jsonl", "{"), ("a.jsonl", "[1]"), ("a.txt", ""), ("none.csv", None)]
)
def test_files_that_are_none_of_it(tmp_path: Path, name: str, text: str | None):
    """Broken JSON, no object, another kind, no file."""
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(LocalFileError):
        read_examples(tmp_path / name)


def many(count: int) -> list[DatasetExample]:
    """Four verbs to every pair, and its twin as a context of its own."""
    return [
        DatasetExample(clean=clean, corrupted=twin, answers=(f" v{verb}",))
        for k in range(count)
        for clean, twin in ((f"one {k}", f"many {k}"), (f"many {k}", f"one {k}"))
        for verb in range(4)
    ]


def test_no_text_or_twin_is_on_both_sides():
    """The same words with another verb would not be held out; duplicates are counted and dropped."""
    split = split_examples([*many(20), *many(3)], held_out=0.4, seed=1, limit=60)
    assert len(split.training) + len(split.held_out) == 60
    assert len(split.held_out) == 24
    assert split.duplicates == 24
    left = {text for one in split.training for text in (one.clean, one.corrupted)}
    assert not left & {text for one in split.held_out for text in (one.clean, one.corrupted)}


def texts_of(examples: Iterable[DatasetExample]) -> set[str | None]:
    """Every text that the model reads."""
    return {text for one in examples for text in (one.clean, one.corrupted)}


def of_one_twin(count: int, of_each: int) -> list[DatasetExample]:
    """Contexts of which as many have one twin, as the years of a century have its first."""
    return [
        DatasetExample(clean=f"year {k}, {n}", corrupted=f"year {k}, 01", answers=(f" a{n}",))
        for k in range(count)
        for n in range(2, of_each + 2)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_contexts_of_one_twin_are_on_one_side(seed: int):
    """(A, B) and (A, C) are different pairs, and so are those that others join: A, B and C in a chain."""
    chain = [
        DatasetExample(clean=f"{a} {k}", corrupted=f"{b} {k}", answers=(" x",))
        for a, b in ("ab", "cd", "bc")
        for k in range(9)
    ]
    split = split_examples([*of_one_twin(12, 3), *chain], held_out=0.4, seed=seed)
    assert len(split.held_out) >= 20
    assert not texts_of(split.training) & texts_of(split.held_out)


@pytest.mark.parametrize(
    ("groups", "of_each", "share"), [(3, 30, 0.5), (4, 25, 0.4), (5, 40, 0.5), (34, 1, 0.5)]
)
def test_what_is_left_out_is_counted(groups: int, of_each: int, share: float):
    """A side that large groups cannot fill leaves its room to the other; what fits nowhere is told."""
    split = split_examples(of_one_twin(groups, of_each), held_out=share)
    assert len(split.training) + len(split.held_out) + split.bound == groups * of_each
    assert not texts_of(split.training) & texts_of(split.held_out)
    assert split.bound <= of_each
    if len(split.held_out) < round(groups * of_each * share):
        assert split.bound == 0


@pytest.mark.parametrize("seed", range(5))
def test_one_large_group_does_not_starve_a_side(seed: int):
    """Eighty contexts of one twin: they are on one side, whichever comes first in the shuffle."""
    split = split_examples([*of_one_twin(1, 80), *of_one_twin(20, 1)], held_out=0.5, seed=seed)
    assert min(len(split.training), len(split.held_out)) >= 19
    assert not texts_of(split.training) & texts_of(split.held_out)


def test_a_seed_divides_in_one_way():
    """And another one in another way."""
    assert split_examples(many(20), seed=3) == split_examples(many(20), seed=3)
    assert split_examples(many(20), seed=3) != split_examples(many(20), seed=4)


@pytest.mark.parametrize(("count", "share"), [(1, 0.5), (0, 0.5), (20, 0.001), (20, 0.999)])
def test_a_side_must_not_be_empty(count: int, share: float):
    """One pair with four verbs has nothing to hold back."""
    with pytest.raises(InvalidRequestError, match="at least two"):
        split_examples(many(count), held_out=share)


def test_the_share_is_a_share():
    """Neither none nor all."""
    with pytest.raises(InvalidRequestError, match="above 0 and below 1"):
        split_examples(many(20), held_out=1.0)
