"""Cells and lines of labelled texts: what is empty, what is a number, where a line ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trephine.client.errors import InvalidRequestError, LocalFileError
from trephine.client.labelled_files import TextColumns, read_attribute_texts, read_texts


def test_lines_end_where_the_format_says(tmp_path: Path):
    """A JSON string may hold U+2028 as it is, and a quoted cell a newline."""
    lines = tmp_path / "rows.jsonl"
    lines.write_text('{"text": "a\u2028b\x85c", "label": "x"}\r\n\r\n{"text": "d", "label": "y"}', "utf-8")
    assert [one.text for one in read_texts(lines)] == ["a\u2028b\x85c", "d"]
    table = tmp_path / "rows.csv"
    table.write_bytes(b'text,label\r\n"two\nlines",x\r\n"d\r\ne",y\r\n')
    assert [(one.text, one.label) for one in read_texts(table)] == [("two\nlines", "x"), ("d\r\ne", "y")]
    table.write_text("text,label\n" + "a" * 140_000 + ",x\n")
    with pytest.raises(LocalFileError, match="is no CSV: field larger"):
        read_texts(table)


def test_an_empty_cell_of_a_csv_is_none(tmp_path: Path):
    """And so is one that a short row does not have."""
    file = tmp_path / "rows.csv"
    file.write_text("text,label,gender,twin\na b,x,f,c d\na c,y, ,\na d,y\n")
    found = read_texts(file, TextColumns(attribute="gender", twin="twin"))
    assert [(one.attribute, one.twin) for one in found] == [("f", "c d"), (None, None), (None, None)]
    assert read_attribute_texts(file, text="text", attribute="label")[2].attribute == "y"


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (None, "row 1: column 'label' is empty"),
        ("", "row 1: column 'label' is empty"),
        (0.5, "holds 0.5, which is neither a text nor a whole number"),
        (["x"], r"holds \['x'\], which is neither"),
    ],
)
def test_a_label_that_is_none_is_named(tmp_path: Path, cell: Any, said: str):
    """With its place and what stands there."""
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"text": "a", "label": cell}))
    with pytest.raises(InvalidRequestError, match=said):
        read_texts(file)
