"""Published folders: given their names, read in pieces, held against what was published."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Iterable
from io import BufferedReader
from pathlib import Path

from trephine.app.storage.files import full_disk_is_typed, sync_folder
from trephine.app.storage.records import RecordFolder, ValueT
from trephine.domain.errors import (
    CheckpointUnverifiedError,
    ExportTargetExistsError,
    InvalidRequestError,
    ResourceNotFoundError,
)
from trephine.domain.exports import ExportedFile

_CHUNK = 512 << 10
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


def rename_free(built: Path, final: Path, *, field: str) -> None:
    """Give a finished folder a name that was free a moment ago, by one rename.

    Args:
        built: The folder.
        final: Its name.
        field: Of the request, which chose it.

    Raises:
        ExportTargetExistsError: If somebody took it meanwhile.
        DiskFullError: If there is no room for a name.
    """
    try:
        with full_disk_is_typed(final.name):
            os.rename(built, final)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        raise name_taken(final.name, field=field) from error


def publish_recorded(
    records: RecordFolder[ValueT], value: ValueT, built: Path, final: Path, *, field: str
) -> None:
    """Enter a record under a folder's name and give the folder that name, or leave neither.

    Raises:
        ExportTargetExistsError: If somebody took the name meanwhile.
        DiskFullError: If there is no room.
    """
    records.write(final.name, value)
    try:
        rename_free(built, final, field=field)
    except Exception:
        records.delete(final.name)  # it would speak of a folder that somebody else made
        raise
    sync_folder(final.parent)


def name_taken(name: str, *, field: str, advice: str = "choose another name") -> ExportTargetExistsError:
    """Return the refusal of a name that something has already."""
    return ExportTargetExistsError(
        f"{name} exists in the export root, nothing is overwritten; {advice}", field=field
    )


async def file_chunks(
    folder: Path, files: Iterable[ExportedFile], path: str, offset: int, *, name: str
) -> AsyncIterator[tuple[int, bytes]]:
    """Read a listed file in pieces of at most 512 KiB, each with where it begins.

    Args:
        folder: The published folder.
        files: What is listed.
        path: The file.
        offset: First byte.
        name: Resource name of the folder, for messages.

    Raises:
        ResourceNotFoundError: If the file is not listed.
        InvalidRequestError: If the offset lies outside it.
        CheckpointUnverifiedError: If the file is gone or is a link now, or, at its end, if it was read from
            the first byte and is not the one that was published.
    """
    listed = next((file for file in files if file.path == path), None)
    if listed is None:
        raise ResourceNotFoundError(f"{name} lists no file {path!r}", file=path)
    if not 0 <= offset <= listed.size:
        raise InvalidRequestError(
            f"offset {offset} lies outside the file's {listed.size} bytes", field="offset"
        )
    digest = hashlib.sha256() if offset == 0 else None
    with _opened(folder, path) as file:
        file.seek(offset)
        while data := await asyncio.to_thread(_next, file, digest):
            yield offset, data
            offset += len(data)
    if digest is not None and (offset, digest.hexdigest()) != (listed.size, listed.sha256):
        raise _not_published(folder, path)


def _next(file: BufferedReader, digest: hashlib._Hash | None) -> bytes:
    """Read a piece, and enter it into the digest on the same thread."""
    data = file.read(_CHUNK)
    if digest is not None:
        digest.update(data)
    return data


def altered_files(folder: Path, files: Iterable[ExportedFile]) -> list[str]:
    """List the files of a record that are not in the folder byte for byte; hashes all that are."""
    return [file.path for file in files if not _is_whole(folder, file)]


def _is_whole(folder: Path, file: ExportedFile) -> bool:
    try:
        with _opened(folder, file.path) as found:
            digest = hashlib.file_digest(found, "sha256").hexdigest()
            return (found.tell(), digest) == (file.size, file.sha256)
    except (CheckpointUnverifiedError, OSError):
        return False


def _opened(folder: Path, path: str) -> BufferedReader:
    """Open a regular file; a pipe in its place is not waited for."""
    try:
        file = os.fdopen(os.open(folder / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        file.close()
        raise OSError(f"{path} is no regular file")
    except OSError as error:
        raise _not_published(folder, path) from error


def _not_published(folder: Path, path: str) -> CheckpointUnverifiedError:
    return CheckpointUnverifiedError(
        f"{path} of the export {folder.name} is not the file that was published: somebody changed it on the "
        "server's disk; export again under another name, or into a folder of another name",
        file=path,
    )
