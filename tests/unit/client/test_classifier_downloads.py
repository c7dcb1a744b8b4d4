"""Classifiers are fetched as exports are: resumed where the line broke, checked, moved into place at once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from trephine.client.errors import HashMismatchError, ServerUnreachableError
from trephine.client.spurious_removal import SpuriousRemovals
from trephine.client.types import ClassifierExport
from trephine.v1.spurious_removal_pb2 import ReadClassifierFileRequest, ReadClassifierFileResponse

FILES = {"config.json": b"{}", "weights/score.safetensors": b"0123456789"}


class BrokenLine:
    """Streams three bytes at a time, and breaks once after the first piece of a long file."""

    def __init__(self) -> None:
        self.edits = SimpleNamespace(ReadClassifierFile="ReadClassifierFile")
        self.asked: list[tuple[str, int]] = []

    def stream(self, method: str, request: ReadClassifierFileRequest) -> Iterator[ReadClassifierFileResponse]:
        assert (method, request.name) == ("ReadClassifierFile", "classifiers/judge")
        self.asked.append((request.path, request.offset))
        data = FILES[request.path]
        for start in range(request.offset, len(data), 3):
            yield ReadClassifierFileResponse(offset=start, data=data[start : start + 3])
            if request.offset == 0 and len(data) > 3:
                raise ServerUnreachableError("the line broke")


def _classifier(**digests: str) -> ClassifierExport:
    files = {path: hashlib.sha256(data).hexdigest() for path, data in FILES.items()} | digests
    return ClassifierExport(
        name="classifiers/judge",
        removal="spuriousRemovals/a",
        export="exports/b",
        architecture="LlamaForSequenceClassification",
        labels=("bad", "good"),
        files=files,
        checked_texts=4,
        largest_difference=0.0,
        agreeing=4,
        sizes={path: len(data) for path, data in FILES.items()},
    )


def test_a_broken_line_is_taken_up_where_it_broke(tmp_path: Path):
    """No byte is asked for twice, and what was received is counted."""
    line, seen = BrokenLine(), list[tuple[int, int]]()
    removals = SpuriousRemovals(line)  # type: ignore[arg-type]
    found = removals.download_classifier(
        _classifier(), tmp_path / "judge", on_bytes=lambda *done: seen.append(done)
    )
    assert {
        str(one.relative_to(found)): one.read_bytes() for one in found.rglob("*") if one.is_file()
    } == FILES
    assert line.asked == [("config.json", 0), *(("weights/score.safetensors", offset) for offset in (0, 3))]
    assert seen == [(2, 12), (12, 12)]


def test_other_bytes_than_announced_leave_nothing_behind(tmp_path: Path):
    """Neither the folder nor its temporary sibling."""
    removals = SpuriousRemovals(BrokenLine())  # type: ignore[arg-type]
    with pytest.raises(HashMismatchError):
        removals.download_classifier(_classifier(**{"config.json": "0" * 64}), tmp_path / "judge")
    assert not list(tmp_path.iterdir())
