"""Reading files of published folders in pieces."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import BinaryIO

from trephine.domain.errors import CheckpointUnverifiedError, InvalidRequestError, ResourceNotFoundError

_CHUNK = 512 << 10


async def file_chunks(
    folder: Path, sizes: Mapping[str, int], path: str, offset: int, *, name: str
) -> AsyncIterator[tuple[int, bytes]]:
    """Read a listed file in pieces of at most 512 KiB, each with where it begins.

    Args:
        folder: The published folder.
        sizes: Bytes of every file that is listed.
        path: The file.
        offset: First byte.
        name: Resource name of the folder, for messages.

    Raises:
        ResourceNotFoundError: If the file is not listed.
        InvalidRequestError: If the offset lies outside it.
        CheckpointUnverifiedError: If the file is gone or is a link now.
    """
    if path not in sizes:
        raise ResourceNotFoundError(f"{name} lists no file {path!r}", file=path)
    if not 0 <= offset <= sizes[path]:
        raise InvalidRequestError(
            f"offset {offset} lies outside the file's {sizes[path]} bytes", field="offset"
        )
    with _opened(folder, path) as file:
        file.seek(offset)
        while data := await asyncio.to_thread(file.read, _CHUNK):
            yield offset, data
            offset += len(data)


def _opened(folder: Path, path: str) -> BinaryIO:
    try:
        return os.fdopen(os.open(folder / path, os.O_RDONLY | os.O_NOFOLLOW), "rb")
    except OSError as error:
        raise CheckpointUnverifiedError(
            f"{path} of the export {folder.name} is not the file that was published; export the edit again",
            file=path,
        ) from error
