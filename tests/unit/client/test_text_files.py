"""What a server calls by number is told by file and row on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trephine.client.cli.output import Output
from trephine.client.cli.text_files import TextFiles
from trephine.client.errors import InvalidRequestError, LocalFileError, SplitLeakageError, TooFewItemsError
from trephine.client.labelled_files import TextColumns

PLAIN = TextColumns()


@pytest.fixture
def files(tmp_path: Path) -> TextFiles:
    """Two training files in a folder, pairs to test on, examples of the attribute."""
    (tmp_path / "a.jsonl").write_text('{"text": "one", "label": "x"}\n\n{"text": "two", "label": "y"}\n')
    (tmp_path / "b.csv").write_text("text,label\nthree,x\n")
    pairs = [{"chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(3)]
    (tmp_path / "more").mkdir()
    test = tmp_path / "more" / "pairs.jsonl"
    test.write_text("\n".join(map(json.dumps, pairs)))
    others = tmp_path / "more" / "others.csv"
    others.write_text("text,who\nhe,m\nshe,f\n")
    read = TextFiles(Output(json=False))
    assert len(read.split("training", tmp_path, PLAIN, ())) == 3
    assert read.split("validation", None, PLAIN, ()) == ()
    assert len(read.split("test", test, PLAIN, ())) == 6
    assert [one.attribute for one in read.examples(others, "text", "who")] == ["m", "f"]
    return read


def test_texts_are_told_by_file_and_row(files: TextFiles):
    """In the order in which the message names them, then the field; a pair is one row."""
    with pytest.raises(SplitLeakageError) as shared, files.told():
        raise SplitLeakageError("test text 3 is training text 2: 'three'. Drop one.", field="test[3].text")
    assert shared.value.message == (
        "test text 3 is training text 2: 'three'. Drop one. Counted from 0, test text 3 stands in "
        "pairs.jsonl, row 2, training text 2 stands in b.csv, row 1"
    )
    with pytest.raises(InvalidRequestError, match=r"example 1 stands in others\.csv, row 2$"), files.told():
        raise InvalidRequestError("the twin of attribute example 1 is empty")
    with pytest.raises(InvalidRequestError, match=r"text 1 stands in a\.jsonl, row 2$"), files.told():
        raise InvalidRequestError("it has one token", field="training[1].text")


def test_what_names_no_text_stays_as_it_is(files: TextFiles):
    """Nor does a number that no text of ours has."""
    unknown = {"the ambiguous set has 3 labels": "training", "validation text 5": "test[99].text"}
    for message, field in unknown.items():
        with pytest.raises(TooFewItemsError) as refused, files.told():
            raise TooFewItemsError(message, field=field)
        assert refused.value.message == message


@pytest.mark.parametrize("written", ["", "\n\n", "text,label\n"])
def test_a_file_without_rows_is_not_taken_for_none(tmp_path: Path, written: str):
    """What was to be tested on would not be, and nobody told."""
    file = tmp_path / "test.csv"
    file.write_text(written)
    with pytest.raises(LocalFileError, match=r"test\.csv holds no row"):
        TextFiles(Output(json=False)).split("test", file, PLAIN, ())
