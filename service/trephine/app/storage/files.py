"""Files that are either there whole or not at all: a temporary sibling, fsync, one rename."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar
from uuid import uuid4

from trephine.domain.disk import why_no_room
from trephine.domain.errors import DiskFullError

Given = ParamSpec("Given")
Result = TypeVar("Result")

TEMPORARY = ".trephine-tmp-"
"""Every temporary file and folder begins so; a leftover may be removed at any start."""


@contextmanager
def full_disk_is_typed(what: str) -> Iterator[None]:
    """Turn "no space left" into an error that says what to do.

    Raises:
        DiskFullError: If the disk or the quota is full, or the file may not grow.
    """
    try:
        yield
    except OSError as error:
        why = why_no_room(error)
        if why is None:
            raise
        raise DiskFullError(
            f"no room for {what}: {why}; free some space and try again, nothing was kept"
        ) from error


def write_whole(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Write a file so that a reader or a crash sees the old bytes or the new ones, never a mixture.

    Raises:
        DiskFullError: If there is no room; the old file is untouched and nothing else is left.
    """
    temporary = path.with_name(f"{TEMPORARY}{uuid4().hex}")
    try:
        with full_disk_is_typed(path.name):
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names inside a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_folder(built: Path, final: Path) -> None:
    """Make a finished folder visible under its name by one rename, after syncing what it holds.

    Raises:
        FileExistsError: If a folder that is not empty has the name already.
    """
    for path in built.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(built)
    os.rename(built, final)
    sync_folder(final.parent)


def sweep(folder: Path) -> int:
    """Remove what interrupted writes left in a folder that is ours alone; return how many."""
    leftovers = list(folder.glob(f"{TEMPORARY}*"))
    for leftover in leftovers:
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
    return len(leftovers)


async def carried_through(
    work: Callable[Given, Result], *args: Given.args, **options: Given.kwargs
) -> Result:
    """Run work in a thread to its end; a cancellation that comes meanwhile comes too late.

    A thread cannot be stopped. Whoever went on as if it had been would clean up what it is about to publish,
    or let the next one read what it is about to write over.
    """
    bound = partial(copy_context().run, work, *args, **options)
    running = asyncio.get_running_loop().run_in_executor(None, bound)
    while True:
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            if running.cancelled():
                raise
