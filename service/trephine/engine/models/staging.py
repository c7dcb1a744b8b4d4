"""Building beside the target and publishing by one rename; what a crash leaves is swept. No torch here."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError

from trephine.domain.disk import why_no_room
from trephine.domain.errors import DiskFullError, ExportTargetExistsError

PREFIX = ".trephine-tmp-"
_LOCK = "lock"
_COPY_BYTES = 16 << 20
_UNLOCKED_SECONDS = 60.0
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
"""How safetensors tells an error of the system: in words alone, and not as an OSError."""


class Staging:
    """A folder `.trephine-tmp-<id>` beside the target, locked while its builder lives.

    `checkpoint` inside becomes the target; `evidence` inside is only read by the certifier.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.root = target.parent / f"{PREFIX}{uuid4().hex}"
        self.checkpoint = self.root / "checkpoint"
        self.evidence = self.root / "evidence"
        self._lock = -1

    def open(self) -> None:
        """Create the folders and take the lock that tells a sweep to leave them alone."""
        self.checkpoint.mkdir(parents=True)
        self.evidence.mkdir()
        self._lock = os.open(self.root / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def publish(self, target: Path) -> Generator[None, None, None]:
        """Make the checkpoint durable, one file a quantum, then visible, by one rename.

        Raises:
            ExportTargetExistsError: If the target came into being meanwhile.
        """
        yield from sync_tree(self.checkpoint)
        require_free(target)
        with full_disk_refused():
            os.rename(self.checkpoint, target)
            _sync_folder(target.parent)

    def close(self) -> None:
        """Remove what was not published, and the lock."""
        shutil.rmtree(self.root, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def require_free(target: Path) -> None:
    """Refuse a target that exists, dangling links included.

    Raises:
        ExportTargetExistsError: If it does.
    """
    if os.path.lexists(target):
        raise ExportTargetExistsError(
            f"{target.name} exists already and is never overwritten; choose another name", name=target.name
        )


def require_space(folder: Path, needed: int) -> None:
    """Refuse work that the disk has no room for, before it starts.

    Raises:
        DiskFullError: With what is needed and what is free, in bytes.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFullError(
            f"the export needs about {needed >> 20} MiB on the disk of its root, {free >> 20} MiB are free; "
            "make room or choose another root",
            needed=needed,
            free=free,
        )


@contextmanager
def full_disk_refused() -> Iterator[None]:
    """Turn "no space left" of one quantum's writes into a typed error.

    Raises:
        DiskFullError: If a write inside found the disk or the quota full, or its file may not grow.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = why_no_room(_of_system(error))
        if why is None:
            raise
        raise DiskFullError(
            f"{why}; what was half written is removed: make room, or choose a folder on another disk, "
            "and try again"
        ) from error


def _of_system(error: OSError | SafetensorError) -> OSError:
    """Return the system's error that a writer of tensors tells of, or one without a number."""
    if isinstance(error, OSError):
        return error
    told = _SYSTEM_ERROR.search(str(error))
    return OSError(int(told[1]), str(error)) if told else OSError(str(error))


def copy_file(source: Path, target: Path) -> Generator[None, None, None]:
    """Copy a file's bytes, links followed, one piece a quantum.

    Raises:
        DiskFullError: If there is no room.
    """
    with full_disk_refused():
        target.parent.mkdir(parents=True, exist_ok=True)
    offset, size = 0, source.stat().st_size
    while True:
        with full_disk_refused(), source.open("rb") as reader, target.open("ab") as writer:
            reader.seek(offset)
            writer.write(reader.read(_COPY_BYTES))
        offset += _COPY_BYTES
        yield
        if offset >= size:
            return


def sync_tree(folder: Path) -> Generator[None, None, None]:
    """Flush every file and folder below, and the folder itself, to the disk; one file a quantum."""
    for path, _, files in os.walk(folder, topdown=False):
        for file in files:
            with full_disk_refused():
                _sync(os.path.join(path, file), os.O_RDONLY)
            yield
        _sync_folder(Path(path))


def sweep_leftovers(root: Path) -> tuple[str, ...]:
    """Remove what builders that died left in an export root; return the names.

    A folder whose lock is held belongs to a builder that lives, here or in another process.
    """
    removed: list[str] = []
    for folder in sorted(root.glob(f"{PREFIX}*")):
        if _abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder.name)
    return tuple(removed)


def _abandoned(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # its builder may be about to take the lock
        return folder.is_dir() and time.time() - folder.stat().st_mtime > _UNLOCKED_SECONDS
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


def _sync_folder(folder: Path) -> None:
    _sync(str(folder), os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: str, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
