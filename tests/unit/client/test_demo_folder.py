from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from trephine.client.demo import folder as demo_folder
from trephine.client.demo.folder import MARKER, prepare_folder
from trephine.client.errors import LocalFileError, StateFolderBusyError


def test_a_folder_of_an_earlier_demo_is_cleared(tmp_path: Path):
    """With the marker everything goes, and the marker is there again."""
    made = prepare_folder(tmp_path / "demo")
    (made / "state").mkdir()
    (made / "state" / "db").write_text("old")
    (made / "old.html").write_text("old")
    prepare_folder(made)
    assert [path.name for path in made.iterdir()] == [MARKER]


def test_a_foreign_folder_is_left_alone(tmp_path: Path):
    """Without the marker nothing is touched, not even a file."""
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(LocalFileError, match="not made by an earlier demo"):
        prepare_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_links_are_not_followed(tmp_path: Path):
    """A link inside the folder is removed, not what it points to; a folder that is a link is refused."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("keep")
    made = prepare_folder(tmp_path / "demo")
    (made / "link").symlink_to(precious, target_is_directory=True)
    prepare_folder(made)
    assert (precious / "file").exists()
    (precious / MARKER).write_text("")
    (tmp_path / "other").symlink_to(precious, target_is_directory=True)
    with pytest.raises(LocalFileError):
        prepare_folder(tmp_path / "other")
    assert (precious / "file").exists()


def test_a_folder_in_use_is_not_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """While a server holds the state folder's lock nothing is removed."""
    monkeypatch.setattr(demo_folder, "_WAIT_SECONDS", 0.3)
    made = prepare_folder(tmp_path / "demo")
    (made / "state").mkdir()
    with (made / "state" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StateFolderBusyError):
            prepare_folder(made)
        assert (made / "state" / "lock").exists()
    prepare_folder(made)
    assert not (made / "state").exists()


def test_a_file_is_no_folder(tmp_path: Path):
    """The error names another way out."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(LocalFileError, match="--out"):
        prepare_folder(tmp_path / "file")
