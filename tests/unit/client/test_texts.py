"""Texts from files, and their split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trephine.client.errors import InvalidRequestError, LocalFileError
from trephine.client.texts import read_texts, split_texts


def test_a_line_is_a_text(tmp_path: Path):
    """Blank lines are none; what texts begin with is put in front."""
    file = tmp_path / "texts.txt"
    file.write_text("one two\n\n  \nthree\n")
    assert read_texts(file) == ("one two", "three")
    assert read_texts(file, prefix="<s>") == ("<s>one two", "<s>three")


def test_a_column_is_a_text(tmp_path: Path):
    """Of JSON lines and of CSV; a row without it is named, with the columns that there are."""
    lines, table = tmp_path / "texts.jsonl", tmp_path / "texts.csv"
    lines.write_text("\n".join(json.dumps({"body": text, "n": 1}) for text in ("a b", "c\nd")))
    table.write_text('body,n\n"a, b",1\nc,2\n')
    assert read_texts(lines, "body") == ("a b", "c\nd")
    assert read_texts(table, "body") == ("a, b", "c")
    with pytest.raises(InvalidRequestError, match="row 1 has no text in column 'text'; it has body, n"):
        read_texts(lines)


def test_files_that_cannot_be_read(tmp_path: Path):
    """Not there, of another kind, no text."""
    binary = tmp_path / "texts.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    for file in (tmp_path / "none.txt", tmp_path / "none.md", binary):
        with pytest.raises(LocalFileError):
            read_texts(file)


def test_a_split_has_every_text_once():
    """The same seed divides alike; duplicates are counted; a side of fewer than two is refused."""
    texts = [f"text {number}" for number in range(10)] + ["text 3"]
    split = split_texts(texts, held_out=0.3, seed=1)
    assert (len(split.training), len(split.held_out), split.duplicates) == (7, 3, 1)
    assert sorted({*split.training, *split.held_out}) == sorted(set(texts))
    assert split == split_texts(texts, held_out=0.3, seed=1)
    assert split != split_texts(texts, held_out=0.3, seed=2)
    assert len(split_texts(texts, limit=6).training) == 4
    for few, share in ((texts[:3], 0.5), (texts, 0.0), (texts, 0.05)):
        with pytest.raises(InvalidRequestError):
            split_texts(few, held_out=share)
