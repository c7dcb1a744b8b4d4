"""Files of JSON that anybody may have written: what cannot be read is told in words."""

from __future__ import annotations

import pytest

from trephine.client.circuit_requests import import_annotations
from trephine.client.datasets import rows_of
from trephine.client.errors import InvalidRequestError
from trephine.client.local_errors import LocalFileError
from trephine.client.plain_json import parse_json
from trephine.client.spurious_requests import read_overrides

DEEP = "[" * 100_000


def test_what_is_nested_too_deeply_is_no_json():
    """Python gives up on it with an error of its own, which no reader of files expects."""
    with pytest.raises(ValueError, match="brackets within brackets"):
        parse_json(DEEP)
    assert parse_json('{"a": 1}', object_pairs_hook=list) == [("a", 1)]


def test_files_nested_too_deeply_are_refused_in_words(tmp_path):
    """A person's words about features, rows of data, labels of a circuit."""
    file, rows = tmp_path / "said.json", tmp_path / "rows.jsonl"
    file.write_text('{"1:2": ' + DEEP)
    rows.write_text('{"text": "a"}\n{"text": ' + DEEP)
    with pytest.raises(LocalFileError, match="as JSON: brackets within"):
        read_overrides(file)
    with pytest.raises(LocalFileError, match="line 2 is no JSON: brackets within"):
        list(rows_of(rows))
    with pytest.raises(InvalidRequestError, match="is no JSON: brackets within"):
        import_annotations("circuits/1", file, "")
