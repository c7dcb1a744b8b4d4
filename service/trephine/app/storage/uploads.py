"""Resumable uploads: a partial file per upload, which outlives lost connections and killed servers."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from trephine.app.storage.artifacts import ArtifactStore
from trephine.app.storage.clock import Clock, SystemClock
from trephine.app.storage.files import full_disk_is_typed, write_whole
from trephine.app.storage.records import decode, encode
from trephine.domain.artifacts import ArtifactInfo
from trephine.domain.errors import HashMismatchError, InvalidRequestError

_KEEP_SECONDS = 7 * 24 * 3600.0
"""A partial upload that nobody has continued for a week is forgotten."""

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Begun:
    media_type: str


class Uploads:
    """Pieces are appended at the committed offset; the end is checked against the digest."""

    def __init__(self, folder: Path, artifacts: ArtifactStore, *, clock: Clock | None = None) -> None:
        self._folder = folder
        self._artifacts = artifacts
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._forget_stale((clock or SystemClock()).now().timestamp())

    async def committed(self, upload_id: str) -> int:
        """Return how many bytes are stored durably; 0 for an upload that is not known."""
        path = self._path(upload_id)
        return path.stat().st_size if path.exists() else 0

    async def append(self, upload_id: str, *, offset: int, data: bytes, media_type: str = "") -> int:
        """Add a piece where the upload ends; return the new end, which is durable.

        Raises:
            InvalidRequestError: If the piece begins elsewhere; the context has `committed`.
            DiskFullError: If there is no room; the piece is taken back, the upload can go on later.
        """
        path = self._path(upload_id)
        async with self._locks[path.name]:
            committed = await self.committed(upload_id)
            if offset != committed:
                raise InvalidRequestError(
                    f"the upload continues at byte {committed}, not {offset}",
                    field="offset",
                    committed=committed,
                )
            if offset == 0:
                begun = encode(_Begun(media_type=media_type or "application/octet-stream"))
                await asyncio.to_thread(write_whole, path.with_suffix(".json"), begun)
            await asyncio.to_thread(_append, path, committed, data)
            return committed + len(data)

    async def finish(self, upload_id: str, *, sha256: str) -> ArtifactInfo:
        """Turn a complete upload into an artifact.

        Raises:
            InvalidRequestError: If nothing was uploaded under that id.
            HashMismatchError: If the bytes are not the announced ones; the upload is forgotten.
            DiskFullError: If there is no room; the upload is kept.
        """
        path = self._path(upload_id)
        async with self._locks[path.name]:
            described = path.with_suffix(".json")
            if not described.exists():
                raise InvalidRequestError("nothing was uploaded under this id", field="upload_id")
            begun = decode(_Begun, described.read_bytes(), what=f"upload {upload_id}")
            try:
                info = await self._artifacts.put_stream(
                    _pieces(path), media_type=begun.media_type, expected_sha256=sha256
                )
            except HashMismatchError:
                self._forget(path)
                raise
            self._forget(path)
            return info

    def _path(self, upload_id: str) -> Path:
        if not upload_id or len(upload_id) > 256:
            raise InvalidRequestError("an upload needs an id of 1 to 256 characters", field="upload_id")
        return self._folder / f"{hashlib.sha256(upload_id.encode()).hexdigest()}.part"

    def _forget(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)

    def _forget_stale(self, now: float) -> None:
        for described in self._folder.glob("*.json"):
            path = described.with_suffix(".part")
            touched = (path if path.exists() else described).stat().st_mtime
            if now - touched > _KEEP_SECONDS:
                self._forget(path)


def _append(path: Path, committed: int, data: bytes) -> None:
    """Append durably, or leave the file as it was."""
    with full_disk_is_typed("an upload"), path.open("ab") as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), committed)
            raise


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    if not path.exists():
        return
    with path.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, _CHUNK):
            yield piece
