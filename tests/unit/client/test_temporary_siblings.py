"""What killed writers leave goes with the next run; what living ones write stays."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trephine.client import temporary_siblings
from trephine.client.downloads import IncomingFolder, write_file
from trephine.client.temporary_siblings import PREFIX, sweep_leftovers, temporary_folder

Writer = Callable[[str], subprocess.Popen[bytes]]

_PRELUDE = """
import pathlib, sys, time
from trephine.client.downloads import IncomingFolder, write_file
from trephine.client.types import ExportedFile
root = pathlib.Path(sys.argv[1])
def wait(*_):
    print('writing', flush=True)
    time.sleep(600)
"""
RECEIVING = """
with IncomingFolder(root / 'edited') as incoming:
    file = incoming.file(ExportedFile(path='weights/model.bin', size=2, sha256=''))
    file.write(b'x')
    wait()
"""
WRITING = """
pathlib.Path.replace = wait
write_file(root / 'page.html', b'x' * 100000)
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    """Start a process that is in the midst of writing; none outlives the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", _PRELUDE + code, str(tmp_path)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == b"writing\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def left(folder: Path) -> list[str]:
    """Every name in a folder, with how it begins where it is temporary."""
    return sorted(PREFIX if path.name.startswith(PREFIX) else path.name for path in folder.iterdir())


@pytest.mark.parametrize("code", [RECEIVING, WRITING], ids=["folder", "file"])
def test_the_next_run_removes_what_a_killed_one_left(code: str, writer: Writer, tmp_path: Path):
    """While the first lives, runs beside it leave it alone; after kill -9 the next one clears up."""
    first = writer(code)
    write_file(tmp_path / "other.html", b"y")
    with IncomingFolder(tmp_path / "other"):
        assert left(tmp_path) == [PREFIX, PREFIX, "other.html"]
    assert left(tmp_path) == [PREFIX, "other.html"]
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert left(tmp_path) == [PREFIX, "other.html"]
    if code == RECEIVING:
        with IncomingFolder(tmp_path / "edited") as incoming:
            assert left(tmp_path) == [PREFIX, "other.html"]
            incoming.publish()
        assert left(tmp_path) == ["edited", "other.html"]
    else:
        write_file(tmp_path / "page.html", b"z")
        assert left(tmp_path) == ["other.html", "page.html"]
        assert (tmp_path / "page.html").read_bytes() == b"z"


def test_two_receivers_of_one_process_leave_each_other_alone(tmp_path: Path):
    """A lock is held by whoever opened it, not by the process at large."""
    with temporary_folder(tmp_path / "one") as one, temporary_folder(tmp_path / "two") as two:
        assert sweep_leftovers(tmp_path) == ()
        assert one.is_dir()
        assert two.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_that_is_faster_than_the_lock_takes_nothing_from_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Between making and locking a folder looks abandoned: the writer then makes another one."""
    make, swept = temporary_siblings._new_folder, list[tuple[str, ...]]()

    def overtaken(path: Path) -> int:
        descriptor = make(path)
        if not swept:
            swept.append(sweep_leftovers(tmp_path))
        return descriptor

    monkeypatch.setattr(temporary_siblings, "_new_folder", overtaken)
    with temporary_folder(tmp_path / "edited") as folder:
        assert len(swept[0]) == 1
        assert folder.name not in swept[0]
        assert list(tmp_path.iterdir()) == [folder]


def test_only_what_is_the_clients_own_is_removed(tmp_path: Path):
    """A server's folder in the making, links, pipes and anything else of anybody stay."""
    (tmp_path / ".trephine-tmp-0123" / "edited").mkdir(parents=True)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "weights").write_text("x")
    (tmp_path / f"{PREFIX}link").symlink_to("precious")
    os.mkfifo(tmp_path / f"{PREFIX}pipe")
    (tmp_path / f"{PREFIX}dead" / "weights").mkdir(parents=True)
    assert sweep_leftovers(tmp_path) == (f"{PREFIX}dead",)
    names = [".trephine-tmp-0123", f"{PREFIX}link", f"{PREFIX}pipe", "precious"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert (tmp_path / "precious" / "weights").read_text() == "x"
    assert sweep_leftovers(tmp_path / "nowhere") == ()


def test_without_locks_nothing_is_swept_and_writing_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Who cannot tell the dead from the living removes nobody's work."""

    def refused(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    (tmp_path / f"{PREFIX}somebody").mkdir()
    monkeypatch.setattr(fcntl, "flock", refused)
    assert write_file(tmp_path / "page.html", b"x").read_bytes() == b"x"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{PREFIX}somebody", "page.html"]
