"""Building beside the target: published whole, or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tests.file_limits import files_end_at
from trephine.domain.errors import DiskFullError, ExportTargetExistsError
from trephine.engine.models.quanta import finish
from trephine.engine.models.staging import (
    PREFIX,
    Staging,
    copy_file,
    full_disk_refused,
    require_free,
    require_space,
    sweep_leftovers,
)


@pytest.fixture
def staging(tmp_path):
    """An open staging folder."""
    opened = Staging(tmp_path / "edited")
    opened.open()
    yield opened
    opened.close()


def test_publishing_is_one_rename_and_leaves_nothing_else(staging, tmp_path):
    """After closing, the target is all there is."""
    (staging.checkpoint / "file").write_text("x")
    finish(staging.publish(staging.target))
    staging.close()
    assert [p.name for p in tmp_path.iterdir()] == ["edited"]
    assert (staging.target / "file").read_text() == "x"


def test_closing_without_publishing_leaves_nothing(staging, tmp_path):
    """Whatever was built is gone."""
    (staging.checkpoint / "file").write_text("x")
    staging.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_a_target_that_exists_is_never_overwritten(staging, kind):
    """Not even one that came into being during the build, nor a link to nowhere."""
    if kind == "folder":
        staging.target.mkdir()
    elif kind == "file":
        staging.target.write_text("mine")
    else:
        staging.target.symlink_to("nowhere")
    with pytest.raises(ExportTargetExistsError):
        finish(staging.publish(staging.target))
    with pytest.raises(ExportTargetExistsError):
        require_free(staging.target)


def test_a_sweep_leaves_living_builders_alone(staging, tmp_path):
    """The lock of a builder that lives protects its folder, in this process too."""
    assert sweep_leftovers(tmp_path) == ()
    assert staging.checkpoint.is_dir()


def test_a_sweep_removes_what_a_killed_builder_left(tmp_path):
    """The kernel drops the lock with the process; nothing else has to notice its death."""
    code = (
        "import pathlib, sys, time\n"
        "from trephine.engine.models.staging import Staging\n"
        "staging = Staging(pathlib.Path(sys.argv[1]) / 'edited'); staging.open()\n"
        "print('open', flush=True); time.sleep(600)\n"
    )
    builder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert builder.stdout is not None
    assert builder.stdout.readline() == b"open\n"
    assert sweep_leftovers(tmp_path) == ()
    builder.kill()
    builder.communicate()
    assert len(sweep_leftovers(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_just_being_made_is_not_swept(tmp_path):
    """Between its creation and its lock it looks abandoned; only an old one is."""
    young, old = tmp_path / f"{PREFIX}young", tmp_path / f"{PREFIX}old"
    young.mkdir()
    old.mkdir()
    os.utime(old, (time.time() - 3600,) * 2)
    assert sweep_leftovers(tmp_path) == (old.name,)
    assert young.is_dir()


def test_too_little_room_is_refused_before_any_work(tmp_path):
    """The error says what is needed and what is free."""
    with pytest.raises(DiskFullError) as caught:
        require_space(tmp_path, 1 << 60)
    assert caught.value.context["needed"] == 1 << 60
    require_space(tmp_path, 1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_a_typed_error(number):
    """Disk and quota alike; other errors of the system stay what they are."""
    with pytest.raises(DiskFullError, match="make room"), full_disk_refused():
        raise OSError(number, "full")
    with pytest.raises(PermissionError), full_disk_refused():
        raise PermissionError(errno.EACCES, "denied")


def test_a_disk_that_fills_up_under_a_tensor_is_the_same_error(tmp_path):
    """Its writer tells the system's error in words; another of its errors stays what it is."""
    with pytest.raises(DiskFullError, match="make room"), files_end_at(100), full_disk_refused():
        save_file({"a": np.zeros(1000)}, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "b").write_text("no tensors")
    with pytest.raises(SafetensorError, match="header"), full_disk_refused():
        safe_open(tmp_path / "b", "np")


def test_a_parent_that_may_only_be_read_is_copied_into_files_that_may_be_written(tmp_path):
    """Tensors are patched in the copy; the parent keeps its mode and its bytes."""
    source = tmp_path / "model.safetensors"
    source.write_bytes(b"weights")
    source.chmod(0o444)
    finish(copy_file(source, tmp_path / "copy" / "model.safetensors"))
    assert (tmp_path / "copy" / "model.safetensors").stat().st_mode & 0o200
    assert source.stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize("size", [0, 1, 16 << 20, (16 << 20) + 1])
def test_copies_are_byte_for_byte(tmp_path, size):
    """Also of empty files and of sizes at a piece's border; folders are made on the way."""
    source, target = tmp_path / "a", tmp_path / "deep" / "b"
    source.write_bytes(os.urandom(size))
    finish(copy_file(source, target))
    assert target.read_bytes() == source.read_bytes()


def test_importing_it_does_not_import_torch():
    """A front that never imports torch may sweep."""
    code = "import sys, trephine.engine.models.staging; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
