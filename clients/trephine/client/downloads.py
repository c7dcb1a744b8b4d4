"""Receiving a folder: into a temporary sibling, every digest checked, one rename."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import BinaryIO

from trephine.client.errors import (
    ExportTargetExistsError,
    HashMismatchError,
    LocalFileError,
)
from trephine.client.local_disk import unwritten
from trephine.client.temporary_siblings import temporary_file, temporary_folder
from trephine.client.types import ExportedFile

OnBytes = Callable[[int, int], None]
"""Called with (bytes received, bytes in all)."""


def require_absent(folder: Path) -> None:
    """Refuse a target that exists: nothing is ever overwritten.

    Raises:
        ExportTargetExistsError: If it exists.
    """
    if folder.exists() or folder.is_symlink():
        raise ExportTargetExistsError(
            f"{folder} exists; nothing is overwritten. Choose another folder or remove it",
            context={"folder": str(folder)},
        )


class IncomingFile:
    """One file that is being received. Keeps count and digest."""

    def __init__(self, expected: ExportedFile, path: Path) -> None:
        self._expected = expected
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = path.open("xb")
        except OSError as failure:
            raise unwritten(expected.path, failure) from failure
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append a piece.

        Raises:
            DiskFullError: If there is no room.
            LocalFileError: If it cannot be written for another reason.
        """
        with self._written():
            self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def finish(self) -> None:
        """Flush to the disk and check the digest.

        Raises:
            DiskFullError: If there is no room.
            LocalFileError: If it cannot be written for another reason.
            HashMismatchError: If these are not the announced bytes.
        """
        with self._written(), self._file:
            self._file.flush()
            os.fsync(self._file.fileno())
        if (self.size, self._digest.hexdigest()) != (self._expected.size, self._expected.sha256):
            raise HashMismatchError(
                f"{self._expected.path} arrived with {self.size} bytes and another digest than announced; "
                "nothing was kept, try again"
            )

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as failure:
            with suppress(OSError):  # what is left in the buffer finds no room either
                self._file.close()
            raise unwritten(self._expected.path, failure) from failure


class IncomingFolder:
    """A folder that is being received. Leaving the context without `publish` removes it.

    Entering it also removes what receivers that were killed left beside the target.
    """

    def __init__(self, target: Path) -> None:
        require_absent(target)
        self._target = target
        self._held = ExitStack()

    def __enter__(self) -> IncomingFolder:
        try:
            self._temporary = self._held.enter_context(temporary_folder(self._target))
        except OSError as failure:
            raise LocalFileError(f"cannot write beside {self._target}: {failure.strerror}") from failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def file(self, expected: ExportedFile) -> IncomingFile:
        """Begin a file.

        Raises:
            HashMismatchError: If its path leads out of the folder.
            DiskFullError, LocalFileError: If it cannot be begun.
        """
        path = PurePosixPath(expected.path)
        if path.is_absolute() or not path.parts or ".." in path.parts:
            raise HashMismatchError(f"the server announced the unsafe path {expected.path!r}; refused")
        return IncomingFile(expected, self._temporary.joinpath(*path.parts))

    def publish(self) -> Path:
        """Move everything to its place by one rename.

        Raises:
            ExportTargetExistsError: If something appeared there meanwhile.
            DiskFullError, LocalFileError: If it cannot be given its name.
        """
        require_absent(self._target)
        try:
            os.rename(self._temporary, self._target)
        except OSError as failure:
            raise unwritten(self._target, failure) from failure
        _sync(self._target.parent)
        return self._target


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes) -> Path:
    """Write a small file through a temporary sibling and one rename; an older one is replaced.

    Raises:
        LocalFileError: If it cannot be written.
    """
    try:
        with temporary_file(path) as (temporary, descriptor):
            with os.fdopen(descriptor, "wb", closefd=False) as file:
                file.write(data)
            temporary.replace(path)
    except OSError as failure:
        raise LocalFileError(f"cannot write {path}: {failure.strerror or failure}") from failure
    return path


def require_writable(*paths: Path) -> None:
    """Refuse targets of `write_file` that cannot be written, before the work whose result they are to hold.

    Nothing of it is left: folders that are missing are made again once there is something to write.

    Raises:
        LocalFileError: If one is a folder, or nothing can be written beside it.
    """
    for path in paths:
        if path.is_dir():
            raise LocalFileError(f"cannot write {path}: it is a folder; name a file")
        missing = [folder for folder in path.parents if not folder.exists()]
        try:
            with temporary_file(path):
                pass
        except OSError as failure:
            raise LocalFileError(f"cannot write {path}: {failure.strerror or failure}") from failure
        finally:
            for folder in missing:
                with suppress(OSError):  # not made, or something else lies in it by now
                    folder.rmdir()
