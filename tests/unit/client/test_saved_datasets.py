"""Labelled texts from folders that `datasets` saved: read by it, and refused by name where that cannot be."""

from __future__ import annotations

import sys
from pathlib import Path

import datasets
import pytest

from trephine.client.errors import LocalFileError
from trephine.client.labelled_files import TextColumns, read_texts

COLUMNS = TextColumns(label="profession", attribute="gender")
TEXTS = {"text": ["one", "two", "three"], "profession": [1, 0, 1], "gender": ["f", "m", "m"]}


def _saved(folder: Path) -> Path:
    kinds = {"text": datasets.Value("string"), "gender": datasets.Value("string")}
    kinds["profession"] = datasets.ClassLabel(names=["nurse", "physician"])
    datasets.Dataset.from_dict(TEXTS, features=datasets.Features(kinds)).save_to_disk(str(folder))
    return folder


def test_rows_come_in_order_with_the_names_of_classes(tmp_path: Path) -> None:
    """A column of class numbers is a column of labels."""
    found = read_texts(_saved(tmp_path / "set"), COLUMNS)
    assert [one.text for one in found] == TEXTS["text"]
    assert [one.label for one in found] == ["physician", "nurse", "physician"]
    assert [one.attribute for one in found] == TEXTS["gender"]


def test_several_splits_are_named(tmp_path: Path) -> None:
    """Reading train and test as one would leak: the message says what there is."""
    rows = datasets.Dataset.from_dict(TEXTS)
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(LocalFileError, match="splits test, train; give the folder of one"):
        read_texts(tmp_path / "both", COLUMNS)
    assert len(read_texts(tmp_path / "both" / "test", COLUMNS)) == 3


def test_a_broken_folder_and_a_missing_library_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cannot be read, the other needs an install."""
    folder = _saved(tmp_path / "set")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "datasets", None)
        with pytest.raises(
            LocalFileError, match=r"pip install 'trephine\[datasets\]', or save as JSON lines"
        ):
            read_texts(folder, COLUMNS)
    (folder / "state.json").write_text("{}")
    with pytest.raises(LocalFileError, match="as a saved data set"):
        read_texts(folder, COLUMNS)


def test_a_folder_with_nothing_to_read_says_what_it_may_hold(tmp_path: Path) -> None:
    """Neither lines nor a saved set."""
    with pytest.raises(LocalFileError, match="no folder that `datasets` saved"):
        read_texts(tmp_path, COLUMNS)
