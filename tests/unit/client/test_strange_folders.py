"""Offline verification of folders that hold what nobody may open or name."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.client.test_deltas import run
from trephine.client.verification import verify_folder

__all__ = ["run"]
"""A fixture of another module."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the papers of an export, by name."""
    (tmp_path / "edited").mkdir()
    for name in ("trephine.sha256", "edit_manifest.json", "certificate.json", "trephine.sig"):
        (tmp_path / "edited" / name).write_text("{}")
    return tmp_path / "edited"


def test_what_is_no_regular_file_is_named_and_not_opened(folder: Path):
    """A pipe that nobody writes into would be waited for without end; so would one in a paper's place."""
    os.mkfifo(folder / "pipe")
    (folder / "trephine.sig").unlink()
    os.mkfifo(folder / "trephine.sig")
    command = [sys.executable, "-m", "trephine.client.verification", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=120)
    assert done.returncode == 3
    for name in (b"pipe", b"trephine.sig"):
        assert b"PROBLEM " + name + b": is no regular file" in done.stdout


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_name_that_is_no_utf8_is_a_problem_and_no_crash(folder: Path, words: list[str]):
    """Its bytes are spelled out, in JSON as well; the folder's own name does no harm."""
    folder = folder.rename(os.fsdecode(os.fsencode(folder) + b"\xfe"))
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.txt")).write_text("x")
    command = [sys.executable, "-m", "trephine.client.verification", folder, *words]
    done = subprocess.run(command, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (3, b"")
    assert b"xff.txt: a name that is no UTF-8 was not published" in done.stdout


def test_links_are_named_one_by_one_and_a_checkpoint_is_still_no_export(folder: Path):
    """Into folders as well; what is missing is said first."""
    (folder / "sub").symlink_to(folder.parent)
    (folder / "config.json").symlink_to("/etc/hostname")
    said = ("config.json: links are never published", "sub: links are never published")
    assert verify_folder(folder).problems == said
    (folder / "certificate.json").unlink()
    assert verify_folder(folder).problems[0].startswith("certificate.json missing: this is no folder")


def test_a_folder_inside_that_cannot_be_looked_into_is_a_problem(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """What lies there was not checked, and a loader with other rights may well read it."""
    (folder / "sub").mkdir()
    (folder / "sub" / "hidden.txt").write_text("x")
    (folder / "trephine.sig").unlink()
    scan = os.scandir

    def refusing(path):
        if Path(path).name == "sub":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    outcome = verify_folder(folder)
    assert not outcome.passed
    assert outcome.problems == (
        "sub: cannot be looked into: Permission denied; what lies there was not checked",
    )


def test_a_file_that_may_be_listed_and_not_looked_at_is_a_problem_and_no_crash(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """As in a folder that may be read and not entered."""
    (folder / "sub").mkdir()
    (folder / "sub" / "hidden.txt").write_text("x")
    look = Path.lstat

    def refusing(path: Path) -> os.stat_result:
        if path.name == "hidden.txt":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
        return look(path)

    monkeypatch.setattr(Path, "lstat", refusing)
    outcome = verify_folder(folder)
    assert not outcome.passed
    assert outcome.problems == ("sub/hidden.txt: cannot be looked at: Permission denied",)


def test_an_empty_folder_is_no_export_and_a_file_is_no_folder(tmp_path: Path):
    """Both are told, and neither is a pass; a folder that is a link is looked into."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    missing = "trephine.sha256, edit_manifest.json, certificate.json missing: this is no folder that Trephine"
    for name in ("empty", "link"):
        outcome = verify_folder(tmp_path / name)
        assert (outcome.passed, outcome.verdict, outcome.files) == (False, "unspecified", 0)
        assert [problem.startswith(missing) for problem in outcome.problems] == [True]
    assert verify_folder(tmp_path / "file").problems == (f"{tmp_path / 'file'} is no folder",)


def test_a_folder_that_does_not_verify_is_not_quoted(folder: Path):
    """Its certificate may say `removed`; whoever altered it could have written that."""
    (folder / "trephine.sig").unlink()
    said = '{"verdict": "passed", "fate": {"verdict": "removed"}}'
    (folder / "certificate.json").write_text(said)
    command = [sys.executable, "-m", "trephine.client.verification", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False, text=True)
    assert done.returncode == 3
    assert "NOT VERIFIED" in done.stdout
    assert not any(word in done.stdout for word in ("removed", "behaviour", "certificate: passed"))


def test_the_command_line_tells_a_file_from_a_folder_that_is_not_there(
    tmp_path: Path, run, capsys: pytest.CaptureFixture[str]
):
    """Both are mistakes of the command, and no findings."""
    (tmp_path / "file").write_text("x")
    for name, says in (("file", "is a file, and no folder"), ("nowhere", "is not there")):
        assert run("verify", str(tmp_path / name)) == 2
        assert says in " ".join(capsys.readouterr().err.split())
