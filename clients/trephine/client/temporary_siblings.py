"""What is written beside its target before one rename, locked while its writer lives.

The lock is the kernel's (`flock`, on the folder or file itself) and ends with the process that holds it,
however that ends: what lies here unlocked was left by a writer that was killed, and the next one in the same
folder removes it. Where a file system knows no such locks, nothing is removed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

PREFIX = ".trephine-tmp-client-"
"""Of the client's alone: a server keeps its own beside its own exports, under other rules."""
_ATTEMPTS = 8


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Give a new folder beside a target, which is removed at the end unless it was renamed.

    Raises:
        OSError: If it cannot be made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep_leftovers(target.parent)
    folder, lock = _made(target.parent, _new_folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextmanager
def temporary_file(target: Path) -> Iterator[tuple[Path, int]]:
    """Give a new file beside a target, open for writing, which is removed at the end unless it was renamed.

    Yields:
        Its path and its descriptor, which stays open until the end.

    Raises:
        OSError: If it cannot be made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep_leftovers(target.parent)
    path, lock = _made(target.parent, _new_file)
    try:
        yield path, lock
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def sweep_leftovers(folder: Path) -> tuple[str, ...]:
    """Remove what writers that were killed left in a folder; return the names.

    What cannot be read or removed stays where it is: a sweep never fails the work that it precedes.
    """
    removed: list[str] = []
    with suppress(OSError):
        for path in sorted(folder.glob(f"{PREFIX}*")):
            with suppress(OSError):
                if _swept(path):
                    removed.append(path.name)
    return tuple(removed)


def _swept(path: Path) -> bool:
    """Remove one sibling under its own lock, unless its writer holds that."""
    kind = path.lstat().st_mode
    if not (stat.S_ISDIR(kind) or stat.S_ISREG(kind)):  # never ours, and a pipe would block
        return False
    lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_at(lock, path):  # published while we looked
            return False
        if stat.S_ISDIR(kind):
            shutil.rmtree(path)
        else:
            path.unlink()
    finally:
        os.close(lock)
    return True


def _made(parent: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    """Make a sibling and lock it; again, where a sweep was faster than the lock."""
    for _ in range(_ATTEMPTS):
        path = parent / f"{PREFIX}{uuid4().hex}"
        try:
            lock = make(path)
        except FileNotFoundError:
            continue
        if _locked(lock) and _is_at(lock, path):
            return path, lock
        os.close(lock)
    raise FileNotFoundError(f"what is made in {parent} vanishes")


def _new_folder(path: Path) -> int:
    path.mkdir()
    return os.open(path, os.O_RDONLY)


def _new_file(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks on this file system: no sweep can take one either, and leaves it alone
        return True
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
