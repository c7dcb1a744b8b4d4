from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from tests.fakes.grpc_server import FILE, FakeService
from tests.file_limits import files_end_at
from trephine.client import Trephine
from trephine.client.aio import connect as connect_async
from trephine.client.downloads import IncomingFolder
from trephine.client.errors import (
    CheckpointUnverifiedError,
    DiskFullError,
    ExportTargetExistsError,
    HashMismatchError,
    LocalFileError,
)
from trephine.client.export_names import export_id_for
from trephine.client.types import Edit, ExportedFile, Version


def test_an_export_comes_home_whole(trephine: Trephine, tmp_path: Path):
    """Every file lies where it was announced, and nothing else is left."""
    trephine.export("no-mary", tmp_path / "out" / "edited")
    assert (tmp_path / "out" / "edited" / "weights" / "model.safetensors").read_bytes() == FILE
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["edited"]


def test_a_broken_download_continues_where_it_broke(fake: FakeService, trephine: Trephine, tmp_path: Path):
    """After UNAVAILABLE the file is read on from its offset and still has the right digest."""
    fake.read_breaks = 1
    trephine.export("no-mary", tmp_path / "edited")
    assert fake.read_offsets == [0, len(FILE) // 2]


def test_other_bytes_than_announced_leave_nothing(fake: FakeService, trephine: Trephine, tmp_path: Path):
    """A flipped byte is found by its digest; no folder appears, no temporary one stays."""
    fake.file = b"\x01" + FILE[1:]
    with pytest.raises(HashMismatchError):
        trephine.export("no-mary", tmp_path / "edited")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_target_is_refused_before_any_work(fake: FakeService, trephine: Trephine, tmp_path: Path):
    """Nothing is overwritten, and the server is not even asked."""
    with pytest.raises(ExportTargetExistsError):
        trephine.export("no-mary", tmp_path)
    assert fake.requests == []


def test_missed_gates_are_not_downloaded(fake: FakeService, trephine: Trephine, tmp_path: Path):
    """A certificate that does not pass stays where it is."""
    fake.gates_passed = False
    with pytest.raises(CheckpointUnverifiedError, match="kl_mean"):
        trephine.export("no-mary", tmp_path / "edited")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["../outside", "/absolute", "a/../../b", ""])
def test_paths_that_lead_out_are_refused(path: str, tmp_path: Path):
    """A server cannot make the client write beside the folder."""
    file = ExportedFile(path=path, size=0, sha256=hashlib.sha256(b"").hexdigest())
    with IncomingFolder(tmp_path / "edited") as incoming, pytest.raises(HashMismatchError, match="unsafe"):
        incoming.file(file)
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_cannot_be_written_is_typed(tmp_path: Path):
    """A file where a folder should be is a local error that names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalFileError, match="edited"), IncomingFolder(tmp_path / "file" / "edited"):
        pass


@pytest.mark.parametrize("size", [1_000, 300_000], ids=["smaller than the buffer", "larger"])
def test_a_disk_that_fills_up_leaves_nothing(size: int, tmp_path: Path):
    """The error is typed and says what to do, whether the last byte or the first finds no room."""
    data = bytes(size)
    file = ExportedFile(path="weights.bin", size=size, sha256=hashlib.sha256(data).hexdigest())

    def receive(incoming: IncomingFolder) -> None:
        target = incoming.file(file)
        target.write(data)
        target.finish()

    says = pytest.raises(DiskFullError, match=r"weights\.bin.*nothing was kept, make room")
    with IncomingFolder(tmp_path / "edited") as incoming, files_end_at(size // 2), says:
        receive(incoming)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", ["out/Edited", "..", "a b/ü..x", "x" * 90])
def test_export_names_fit_the_contract_and_follow_the_edit(folder: str):
    """The name on the server is legal, the same for the same edit, and another for another edit."""
    edit, other = (
        Edit(
            name="edits/e",
            version=1,
            content_hash=digest * 32,
            interventions=(),
            reason="",
            author="",
            evidence=(),
            create_time="",
            made_for=Version(model="models/m", weight_hash=""),
        )
        for digest in ("ab", "cd")
    )
    name = export_id_for(folder, edit)
    assert name == export_id_for(folder, edit) != export_id_for(folder, other)
    assert len(name) <= 63
    assert ".." not in name
    assert name[0].isalnum()
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")


async def test_the_async_client_brings_it_home_too(fake: FakeService, address: str, tmp_path: Path):
    """The same guarantees with `await`."""
    fake.read_breaks = 1
    async with await connect_async(address) as trephine:
        await trephine.export("no-mary", tmp_path / "edited")
    assert (tmp_path / "edited" / "weights" / "model.safetensors").read_bytes() == FILE
    assert fake.read_offsets == [0, len(FILE) // 2]


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, DiskFullError), (errno.EIO, LocalFileError)])
@pytest.mark.parametrize("place", ["open", "rename"])
def test_what_cannot_be_begun_or_named_is_typed(
    trephine: Trephine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, number: int, error: type
):
    """A disk without room for one more file, or for a name; what is broken is not told to make room."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(*((Path, "open") if place == "open" else (os, "rename")), refuse)
        with pytest.raises(error, match="nothing was kept") as caught:
            trephine.export("no-mary", tmp_path / "edited")
    assert ("make room" in caught.value.message) == (number == errno.ENOSPC)
    assert list(tmp_path.iterdir()) == []
