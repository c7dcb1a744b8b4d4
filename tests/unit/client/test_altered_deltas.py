"""Deltas that somebody altered, and disks that fill up under them: nothing is left, the error says why."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.file_limits import files_end_at
from tests.unit.client.test_deltas import folders, run
from trephine.client import deltas
from trephine.client.deltas import apply_delta, make_delta
from trephine.client.errors import DiskFullError, ExportTargetExistsError, HashMismatchError
from trephine.client.local_errors import LocalFileError

__all__ = ["folders", "run"]
"""Fixtures of another module."""


def entry(description: dict[str, Any], name: str) -> dict[str, Any]:
    """One file of a description."""
    return next(file for file in description["files"] if file["path"] == name)


def another_source(description: dict[str, Any]) -> None:
    """A file that is read from outside the parent."""
    entry(description, "tokenizer.json")["parent"] = "../../etc/hostname"


def an_unnamed_source(description: dict[str, Any]) -> None:
    """A shard of which nothing says what it must be."""
    entry(description, "model.safetensors")["parent"] = "other.safetensors"


def a_huge_tensor(description: dict[str, Any]) -> None:
    """A shape that no memory holds."""
    part = next(one for one in entry(description, "model.safetensors")["parts"] if "tensor" in one)
    part["shape"] = [1 << 40, 1 << 20]


def a_size_in_words(description: dict[str, Any]) -> None:
    """A field of another type."""
    entry(description, "certificate.json")["size"] = "large"


def an_unknown_tensor(description: dict[str, Any]) -> None:
    """One that the parent has not."""
    part = next(one for one in entry(description, "model.safetensors")["parts"] if "tensor" in one)
    part["tensor"] = "elsewhere"


def fewer_bytes(description: dict[str, Any]) -> None:
    """All that follows is read from the wrong place."""
    entry(description, "certificate.json")["parts"][0]["bytes"] -= 1


def a_file_less(description: dict[str, Any]) -> None:
    """Nothing else names what is gone."""
    description["files"].remove(entry(description, "certificate.json"))


def no_file_at_all(description: dict[str, Any]) -> None:
    """Of any parent."""
    description.update(files=[], parent={})


def a_file_twice(description: dict[str, Any]) -> None:
    """The later one would be kept."""
    description["files"].append(entry(description, "tokenizer.json"))


def another_name(description: dict[str, Any]) -> None:
    """The bytes are those that it announces."""
    entry(description, "tokenizer.json")["path"] = "tokeniser.json"


ALTERED = (
    *(another_source, an_unnamed_source, a_huge_tensor, a_size_in_words, an_unknown_tensor, fewer_bytes),
    *(a_file_less, no_file_at_all, a_file_twice, another_name),
)


@pytest.mark.parametrize("altered", ALTERED, ids=lambda one: one.__name__)
def test_an_altered_description_is_a_typed_error_and_leaves_nothing(
    folders: tuple[Path, Path, Path], altered: Callable[[dict[str, Any]], None]
) -> None:
    """Whatever is made up: another source, sizes, names, places."""
    parent, exported, root = folders
    delta = make_delta(parent, exported, root / "delta")
    description = json.loads((delta / "delta.json").read_text())
    altered(description)
    (delta / "delta.json").write_text(json.dumps(description))
    with pytest.raises((LocalFileError, HashMismatchError)):
        apply_delta(delta, parent, root / "rebuilt")
    assert sorted(path.name for path in root.iterdir()) == ["delta", "exported", "parent"]


@pytest.mark.parametrize(("size", "says"), [(None, "as many as announced"), (-1, "fewer than no bytes")])
def test_a_few_bytes_do_not_become_many(
    folders: tuple[Path, Path, Path], size: int | None, says: str
) -> None:
    """What decompresses to more than the file's size is not decompressed; -1 would be without a bound."""
    parent, exported, root = folders
    delta = make_delta(parent, exported, root / "delta")
    description = json.loads((delta / "delta.json").read_text())
    packed = zlib.compress(bytes(1 << 24), 9)
    certificate = entry(description, "certificate.json")
    certificate["parts"][0]["bytes"] = len(packed)
    certificate["size"] = certificate["size"] if size is None else size
    (delta / "delta.bin").write_bytes(packed)
    (delta / "delta.json").write_text(json.dumps(description))
    with pytest.raises(LocalFileError, match=says):
        apply_delta(delta, parent, root / "rebuilt")


@pytest.mark.parametrize("room", [10, 300])
def test_a_disk_that_fills_up_leaves_nothing(
    folders: tuple[Path, Path, Path],
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    room: int,
) -> None:
    """Neither of making nor of applying; on the command line it is a sentence."""
    parent, exported, root = folders
    delta = make_delta(parent, exported, root / "delta")
    with files_end_at(room):
        with pytest.raises(DiskFullError, match="make room"):
            make_delta(parent, exported, root / "again")
        with pytest.raises(DiskFullError, match="make room"):
            apply_delta(delta, parent, root / "rebuilt")
        assert run("make-delta", str(parent), str(exported), "--out", str(root / "again")) == 1
    assert "make room" in capsys.readouterr().err
    assert sorted(path.name for path in root.iterdir()) == ["delta", "exported", "parent"]


def test_a_name_that_is_taken_meanwhile_is_not_overwritten(
    folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even an empty folder, which a rename would replace."""
    parent, exported, root = folders
    delta = make_delta(parent, exported, root / "delta")
    write = deltas._write

    def meanwhile(*args: Any) -> None:
        (root / "rebuilt").mkdir(exist_ok=True)
        write(*args)

    monkeypatch.setattr(deltas, "_write", meanwhile)
    with pytest.raises(ExportTargetExistsError):
        apply_delta(delta, parent, root / "rebuilt")
    assert list((root / "rebuilt").iterdir()) == []


@pytest.mark.parametrize("change", ["altered", "gone", "added"])
def test_an_export_that_was_altered_has_no_delta(folders: tuple[Path, Path, Path], change: str) -> None:
    """Its delta would bring home what nobody published."""
    parent, exported, root = folders
    file = exported / ("new.json" if change == "added" else "tokenizer.json")
    if change == "gone":
        file.unlink()
    else:
        file.write_text("[]")
    with pytest.raises(HashMismatchError, match=r"`trephine verify .*exported` names what differs"):
        make_delta(parent, exported, root / "delta")
    assert sorted(path.name for path in root.iterdir()) == ["exported", "parent"]


def test_an_export_without_its_files_is_told(folders: tuple[Path, Path, Path]) -> None:
    """A delta whose content is gone."""
    parent, exported, root = folders
    delta = make_delta(parent, exported, root / "delta")
    (delta / "delta.bin").unlink()
    with pytest.raises(LocalFileError, match=r"delta is no delta: delta\.bin is missing"):
        apply_delta(delta, parent, root / "rebuilt")
    assert sorted(path.name for path in root.iterdir()) == ["delta", "exported", "parent"]
