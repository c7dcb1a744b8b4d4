"""Labelled texts from folders that `datasets` saved: read by it, and refused by name where that cannot be."""

from __future__ import annotations

import json
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import datasets
import pytest

from trephine.client.errors import InvalidRequestError, LocalFileError
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


def _kept(folder: Path, columns: dict[str, list[Any]], **kinds: Any) -> Path:
    """Save a data set whose other columns are texts."""
    features = {name: kinds.get(name, datasets.Value("string")) for name in columns}
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).save_to_disk(str(folder))
    return folder


def test_what_has_no_class_is_empty(tmp_path: Path) -> None:
    """Splits to be judged elsewhere come with -1: no label, and an attribute that nobody knows."""
    kind = datasets.ClassLabel(names=["nurse", "physician"])
    columns = {"text": ["one", "two"], "label": ["a", "b"], "job": [-1, 1]}
    folder = _kept(tmp_path / "set", columns, job=kind)
    with pytest.raises(InvalidRequestError, match="set, row 1: column 'job' is empty"):
        read_texts(folder, TextColumns(label="job"))
    assert [one.attribute for one in read_texts(folder, TextColumns(attribute="job"))] == [None, "physician"]


def test_the_only_split_is_read(tmp_path: Path) -> None:
    """A file that `datasets` loads comes as splits, though it is one; splits that are gone are told."""
    rows = datasets.Dataset.from_dict({"text": ["one"], "label": ["x"]})
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "one"))
    assert [one.text for one in read_texts(tmp_path / "one")] == ["one"]
    shutil.rmtree(tmp_path / "one" / "train")
    with pytest.raises(LocalFileError, match="was saved as splits, and none of them is there"):
        read_texts(tmp_path / "one")


WRONG: dict[str, tuple[list[Any], Any]] = {
    "shares": ([0.5, 1.0], datasets.Value("float32")),
    "lists": ([["x"], ["y"]], datasets.Sequence(datasets.Value("string"))),
    "bytes": ([b"x", b"y"], datasets.Value("binary")),
    "times": ([datetime(2020, 1, 1, tzinfo=UTC)] * 2, datasets.Value("timestamp[s]")),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_column_of_another_kind_is_refused_with_its_row(tmp_path: Path, name: str) -> None:
    """Neither a text nor a whole number is a label."""
    values, kind = WRONG[name]
    folder = _kept(tmp_path / "set", {"text": ["one", "two"], "label": values}, label=kind)
    with pytest.raises(InvalidRequestError, match=r"set, row 1: column 'label' holds .*, which is neither"):
        read_texts(folder)


def test_pictures_beside_texts_are_not_opened(tmp_path: Path) -> None:
    """What would open them need not be installed; they are no texts."""
    picture = {"bytes": b"no picture", "path": None}
    folder = tmp_path / "set"
    columns = {"text": ["one"], "label": ["x"], "seen": [picture]}
    stored = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    _kept(folder, columns, seen=stored)
    info = json.loads((folder / "dataset_info.json").read_text())
    info["features"]["seen"] = {"_type": "Image"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    assert [one.text for one in read_texts(folder)] == ["one"]
    with pytest.raises(InvalidRequestError, match=r"row 1: column 'seen' holds .*neither a text"):
        read_texts(folder, TextColumns(text="seen"))


BROKEN = {
    "no list of files": ("state.json", "[]"),
    "a file that is none": ("state.json", '{"_data_files": 3}'),
    "no description": ("dataset_info.json", "[1]"),
    "rows that are cut off": ("data-00000-of-00001.arrow", ""),
}


@pytest.mark.parametrize("name", BROKEN)
def test_whatever_is_broken_is_no_traceback(tmp_path: Path, name: str) -> None:
    """A typed error that names the folder."""
    file, written = BROKEN[name]
    folder = _saved(tmp_path / "set")
    (folder / file).write_text(written)
    with pytest.raises(LocalFileError, match=r"cannot read .*set as a saved data set"):
        read_texts(folder, COLUMNS)


def test_a_class_that_has_no_name_is_told(tmp_path: Path) -> None:
    """The numbers go further than the names."""
    folder = _kept(tmp_path / "set", {"text": ["one"], "label": [7]}, label=datasets.Value("int64"))
    info = json.loads((folder / "dataset_info.json").read_text())
    info["features"]["label"] = {"names": ["x", "y"], "_type": "ClassLabel"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(LocalFileError, match="as a saved data set"):
        read_texts(folder)
