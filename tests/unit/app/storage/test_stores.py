"""Artifacts, uploads and records: whole or not at all, and true to their digests."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.fakes.clock import FakeClock
from tests.unit.engine.exporting import write_key
from trephine.app.exports.signing_key import public_half_of, signing_key
from trephine.app.storage.artifacts import ArtifactStore
from trephine.app.storage.files import sweep, write_whole
from trephine.app.storage.names import id_in, require_new_id
from trephine.app.storage.records import RecordFolder, decode, encode
from trephine.app.storage.state import StateFolder
from trephine.app.storage.uploads import Uploads
from trephine.domain.artifacts import ArtifactInfo
from trephine.domain.errors import (
    CorruptRecordError,
    DiskFullError,
    HashMismatchError,
    InvalidRequestError,
    ResourceNotFoundError,
    StateFolderBusyError,
)
from trephine.domain.findings import Figure


@pytest.fixture(params=["file", "memory"])
def store(request, tmp_path) -> ArtifactStore:
    """A store on a disk and one in memory."""
    url = (tmp_path / "artifacts").as_uri() if request.param == "file" else f"memory://{uuid4().hex}"
    return ArtifactStore(url, clock=FakeClock())


def digest(data: bytes) -> str:
    """Hex sha256."""
    return hashlib.sha256(data).hexdigest()


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    """A stream of these parts."""
    for part in parts:
        yield part


@pytest.fixture
def full_disk(monkeypatch) -> None:
    """Every fsync says that the disk is full."""

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)


async def test_stored_bytes_are_read_back_by_digest(store):
    """put, stat, read and chunks agree; the address is the sha256."""
    info = await store.put(b"hello", media_type="text/plain")
    assert info == ArtifactInfo(
        sha256=digest(b"hello"),
        size=5,
        media_type="text/plain",
        create_time="2026-01-01T00:00:00.000000Z",
    )
    assert await store.stat(f"artifacts/{info.sha256}") == info
    assert await store.read(info.sha256) == b"hello"
    assert [chunk async for chunk in store.chunks(info.sha256, offset=1, chunk_bytes=3)] == [b"ell", b"o"]
    assert await store.list() == (info,)


async def test_storing_again_is_no_error_and_keeps_the_first(store):
    """The same bytes are one artifact."""
    first = await store.put(b"same", media_type="text/plain")
    assert await store.put(b"same", media_type="text/html") == first
    assert len(await store.list()) == 1


async def test_deleted_artifact_is_gone(store):
    """Deleting forgets; deleting again is not found."""
    info = await store.put(b"x", media_type="text/plain")
    await store.delete(info.sha256)
    for question in (store.stat, store.read, store.delete):
        with pytest.raises(ResourceNotFoundError):
            await question(info.sha256)
    assert await store.list() == ()


async def test_stream_with_another_digest_is_not_kept(store):
    """Announced and actual digest must agree, else nothing is stored."""
    with pytest.raises(HashMismatchError):
        await store.put_stream(pieces(b"a", b"b"), media_type="x/y", expected_sha256=digest(b"other"))
    assert await store.list() == ()
    with pytest.raises(ResourceNotFoundError):
        await store.stat(digest(b"ab"))


async def test_full_disk_leaves_nothing(tmp_path, full_disk):
    """No room is a DiskFullError, and no temporary file survives."""
    store = ArtifactStore((tmp_path / "artifacts").as_uri())
    with pytest.raises(DiskFullError):
        await store.put(b"data", media_type="x/y")
    assert not [path for path in (tmp_path / "artifacts").rglob("*") if path.is_file()]


async def test_changed_bytes_are_noticed(tmp_path):
    """A flipped byte on disk is a HashMismatchError when the artifact is read whole."""
    store = ArtifactStore(tmp_path.as_uri())
    info = await store.put(b"abc", media_type="x/y")
    (tmp_path / "objects" / info.sha256[:2] / info.sha256).write_bytes(b"abd")
    with pytest.raises(HashMismatchError):
        await store.read(info.sha256)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a" * 63, "A" * 64, "artifacts/x/y", ""])
async def test_names_that_are_no_digest_are_refused(store, name):
    """Only 64 lower case hex digits reach the file system."""
    with pytest.raises(InvalidRequestError):
        await store.stat(name)


async def test_upload_continues_after_the_server_is_gone(tmp_path):
    """A new server knows what was committed and finishes the upload."""
    store = ArtifactStore((tmp_path / "artifacts").as_uri())
    before = Uploads(tmp_path / "uploads", store)
    assert await before.append("u1", offset=0, data=b"abc", media_type="text/plain") == 3
    after = Uploads(tmp_path / "uploads", store)
    assert await after.committed("u1") == 3
    assert await after.append("u1", offset=3, data=b"def") == 6
    info = await after.finish("u1", sha256=digest(b"abcdef"))
    assert (info.size, info.media_type) == (6, "text/plain")
    assert await store.read(info.sha256) == b"abcdef"
    assert await after.committed("u1") == 0


async def test_piece_at_the_wrong_place_says_where_to_go_on(tmp_path):
    """The error's context has the committed offset, and nothing was written."""
    uploads = Uploads(tmp_path / "uploads", ArtifactStore((tmp_path / "a").as_uri()))
    await uploads.append("u", offset=0, data=b"abc")
    for offset in (0, 2, 4):
        with pytest.raises(InvalidRequestError) as caught:
            await uploads.append("u", offset=offset, data=b"zzz")
        assert caught.value.context["committed"] == 3
    assert await uploads.committed("u") == 3


async def test_upload_with_another_digest_is_forgotten(tmp_path):
    """Wrong bytes are not kept for a second try."""
    uploads = Uploads(tmp_path / "uploads", ArtifactStore((tmp_path / "a").as_uri()))
    await uploads.append("u", offset=0, data=b"abc")
    with pytest.raises(HashMismatchError):
        await uploads.finish("u", sha256=digest(b"abd"))
    assert await uploads.committed("u") == 0


async def test_upload_id_cannot_leave_its_folder(tmp_path):
    """An id with separators is only hashed."""
    uploads = Uploads(tmp_path / "uploads", ArtifactStore((tmp_path / "a").as_uri()))
    await uploads.append("../../escape", offset=0, data=b"abc")
    assert {path.parent for path in tmp_path.rglob("*.part")} == {tmp_path / "uploads"}


async def test_full_disk_takes_the_piece_back(tmp_path, monkeypatch):
    """A piece that could not be made durable is cut off; the upload can go on."""
    uploads = Uploads(tmp_path / "uploads", ArtifactStore((tmp_path / "a").as_uri()))
    await uploads.append("u", offset=0, data=b"abc")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _no_space)
        with pytest.raises(DiskFullError):
            await uploads.append("u", offset=3, data=b"def")
    assert await uploads.committed("u") == 3
    assert await uploads.append("u", offset=3, data=b"xyz") == 6


def _no_space(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_upload_nobody_continues_is_swept_after_a_week(tmp_path):
    """A partial upload of last month is forgotten at the next start."""
    store = ArtifactStore((tmp_path / "a").as_uri())
    await Uploads(tmp_path / "uploads", store).append("old", offset=0, data=b"abc")
    for path in (tmp_path / "uploads").iterdir():
        os.utime(path, (1, 1))
    assert await Uploads(tmp_path / "uploads", store).committed("old") == 0


def test_failed_write_keeps_the_old_file(tmp_path, full_disk):
    """write_whole replaces all of it or nothing, and leaves no temporary."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(DiskFullError):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_sweep_removes_leftovers_only(tmp_path):
    """Temporary files and folders go, everything else stays."""
    (tmp_path / ".trephine-tmp-1").mkdir()
    (tmp_path / ".trephine-tmp-1" / "x").write_text("x")
    (tmp_path / ".trephine-tmp-2").write_text("x")
    (tmp_path / "kept").write_text("x")
    assert sweep(tmp_path) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_records_survive_with_nan(tmp_path):
    """NaN and infinity come back as they were; equal values encode to equal bytes."""
    figure = Figure(name="x", value=float("inf"), low=None, high=1e-300)
    folder = RecordFolder(tmp_path / "r", Figure)
    folder.write("a.b-c", figure)
    assert folder.read("a.b-c") == figure
    assert folder.ids() == ("a.b-c",)
    assert "NaN" in encode(Figure(name="x", value=float("nan"))).decode()


@pytest.mark.parametrize("data", [b"", b"[]", b'{"name": 3}', b"\x80\x04K\x01."])
def test_unreadable_record_is_an_error_not_a_guess(data):
    """Anything but the record that was written is a CorruptRecordError."""
    with pytest.raises(CorruptRecordError):
        decode(Figure, data, what="figures/x")


def test_one_corrupt_record_does_not_hide_the_others(tmp_path):
    """Listing skips (and logs) what cannot be read; reading it says why."""
    folder = RecordFolder(tmp_path, Figure)
    folder.write("good", Figure(name="x", value=1.0))
    (tmp_path / "bad.json").write_text("{")
    assert list(folder.all()) == ["good"]
    with pytest.raises(CorruptRecordError):
        folder.read("bad")


@pytest.mark.parametrize("name", ["edits/", "edits/a/b", "../x", ".x", "a b", "x\n", "circuits/x"])
def test_names_are_one_safe_component(name):
    """No separator, no leading dot, no space, no other collection."""
    with pytest.raises(InvalidRequestError):
        id_in("edits", name)


@pytest.mark.parametrize("name", ["", "Upper", "a/b", "a..b", ".x", "x.rejected", "a" * 64, "é"])
def test_new_ids_are_stricter(name):
    """What people name is lower case, short and never looks like a rejected export."""
    with pytest.raises(InvalidRequestError):
        require_new_id(name, field="edit_id")


def test_second_server_is_told_who_owns_the_folder(tmp_path):
    """A folder has one owner; the error names its pid; its end frees the folder, even by kill -9."""
    code = (
        "import sys, time; from pathlib import Path; from trephine.app.storage.state import StateFolder\n"
        "state = StateFolder.open(Path(sys.argv[1])); print('open', flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"open\n"
        with pytest.raises(StateFolderBusyError, match=str(owner.pid)) as caught:
            StateFolder.open(tmp_path)
        assert caught.value.context["pid"] == owner.pid
    finally:
        owner.kill()
        owner.wait()
    state = StateFolder.open(tmp_path)
    assert state.executor_id() == state.executor_id()
    state.close()
    StateFolder.open(tmp_path).close()


def test_state_is_for_its_owner_alone(tmp_path):
    """Folder 0700, private key 0600; the key is made once."""
    state = StateFolder.open(tmp_path / "state")
    key = signing_key(state.folder("keys"))
    assert oct((tmp_path / "state").stat().st_mode & 0o777) == "0o700"
    assert oct(key.stat().st_mode & 0o777) == "0o600"
    assert key.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    content = key.read_bytes()
    assert signing_key(Path(state.folder("keys"))).read_bytes() == content
    state.close()


def test_the_public_half_beside_the_state_is_of_the_key_that_signs(tmp_path):
    """Of one from elsewhere too, written again where it is lost; no key of before seems to be one unread."""
    own, public = signing_key(tmp_path), tmp_path / "signing.pub.pem"
    half = public.read_bytes()
    public.unlink()
    assert signing_key(tmp_path) == own
    assert public.read_bytes() == half == public_half_of(own)
    given = write_key(tmp_path / "given.pem")
    assert signing_key(tmp_path, given) == given
    assert public.read_bytes() == public_half_of(given) != half
    signing_key(tmp_path, tmp_path / "missing.pem")
    assert not public.exists()
    signing_key(tmp_path)
    assert public.read_bytes() == half
