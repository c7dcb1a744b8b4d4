"""Fetching a published folder file by file; what was cut off goes on where it stopped."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

from trephine.client.aio.blocking import run_blocking
from trephine.client.downloads import IncomingFolder, OnBytes
from trephine.client.errors import ServerUnreachableError
from trephine.client.types import ExportedFile

DOWNLOAD_ATTEMPTS = 4


async def download_folder(
    files: Sequence[ExportedFile],
    folder: str | Path,
    read: Callable[[str, int], AsyncGenerator[Any, None]],
    *,
    on_bytes: OnBytes | None = None,
) -> Path:
    """Fetch files into a temporary sibling of `folder`, check them, and rename once.

    Args:
        files: What is announced.
        folder: Must not exist.
        read: Streams pieces of the file at a path from an offset.
        on_bytes: Called after every file.

    Raises:
        ExportTargetExistsError: If the folder exists.
        HashMismatchError: If the bytes are not the announced ones; nothing is kept.
    """
    total, received = sum(file.size for file in files), 0
    with IncomingFolder(Path(folder)) as incoming:
        for file in files:
            target = await run_blocking(incoming.file, file)
            for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
                try:
                    async for piece in read(file.path, target.size):
                        await run_blocking(target.write, piece.data)
                    break
                except ServerUnreachableError:
                    if attempt == DOWNLOAD_ATTEMPTS:
                        raise
            await run_blocking(target.finish)
            received += file.size
            if on_bytes is not None:
                on_bytes(received, total)
        return await run_blocking(incoming.publish)
