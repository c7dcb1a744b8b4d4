"""Immutable bytes under their own digest, on any file system that fsspec reaches."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator
from typing import IO, Any
from uuid import uuid4

import fsspec

from trephine.app.storage.clock import Clock, SystemClock, timestamp
from trephine.app.storage.files import TEMPORARY, full_disk_is_typed
from trephine.app.storage.names import id_in
from trephine.app.storage.records import decode, encode
from trephine.domain.artifacts import ArtifactInfo
from trephine.domain.errors import HashMismatchError, InvalidRequestError, ResourceNotFoundError

_DIGEST = re.compile(r"[0-9a-f]{64}")


class ArtifactStore:
    """Artifacts under a folder URL: `file:///...`, `memory://...`, `s3://...`.

    An artifact exists once its bytes do; they appear by one rename, after their description.
    Implements the port `trephine.domain.ports.ArtifactStore`.
    """

    def __init__(self, url: str, *, clock: Clock | None = None) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(url)
        self._clock = clock or SystemClock()
        self._fs.makedirs(f"{self._root}/incoming", exist_ok=True)
        for leftover in self._fs.glob(f"{self._root}/incoming/{TEMPORARY}*"):
            self._fs.rm(leftover)

    async def put(self, data: bytes, *, media_type: str) -> ArtifactInfo:
        """Store bytes; storing them again is no error.

        Raises:
            DiskFullError: If there is no room; nothing is kept.
        """

        async def once() -> AsyncIterator[bytes]:
            yield data

        return await self.put_stream(once(), media_type=media_type, expected_sha256=None)

    async def put_stream(
        self, chunks: AsyncIterator[bytes], *, media_type: str, expected_sha256: str | None
    ) -> ArtifactInfo:
        """Store a stream through a temporary file and one rename.

        Raises:
            HashMismatchError: If the bytes are not the announced ones; nothing is kept.
            DiskFullError: If there is no room; nothing is kept.
        """
        temporary = f"{self._root}/incoming/{TEMPORARY}{uuid4().hex}"
        digest, size = hashlib.sha256(), 0
        try:
            with full_disk_is_typed("an artifact"):
                with await asyncio.to_thread(self._fs.open, temporary, "wb") as file:
                    async for chunk in chunks:
                        digest.update(chunk)
                        size += len(chunk)
                        await asyncio.to_thread(file.write, chunk)
                    await asyncio.to_thread(_sync, file)
                sha256 = digest.hexdigest()
                _require_digest(sha256, expected_sha256)
                return await asyncio.to_thread(self._publish, temporary, sha256, size, media_type)
        finally:
            if await asyncio.to_thread(self._fs.exists, temporary):
                await asyncio.to_thread(self._fs.rm, temporary)

    async def stat(self, sha256: str) -> ArtifactInfo:
        """Describe an artifact, by digest or resource name.

        Raises:
            ResourceNotFoundError: If there is none.
        """
        return await asyncio.to_thread(self._stat, sha256)

    async def read(self, sha256: str) -> bytes:
        """Read a whole (small) artifact and check it against its digest.

        Raises:
            ResourceNotFoundError: If there is none.
            HashMismatchError: If the stored bytes have changed.
        """
        info = await self.stat(sha256)
        data: bytes = await asyncio.to_thread(self._fs.cat_file, self._path(info.sha256))
        _require_digest(hashlib.sha256(data).hexdigest(), info.sha256)
        return data

    async def chunks(
        self, sha256: str, *, offset: int = 0, chunk_bytes: int = 1 << 20
    ) -> AsyncIterator[bytes]:
        """Read in pieces from an offset.

        Raises:
            ResourceNotFoundError: If there is none.
            InvalidRequestError: If the offset lies outside.
        """
        info = await self.stat(sha256)
        if not 0 <= offset <= info.size:
            raise InvalidRequestError(
                f"offset {offset} lies outside the artifact's {info.size} bytes", field="offset"
            )
        with await asyncio.to_thread(self._fs.open, self._path(info.sha256), "rb") as file:
            await asyncio.to_thread(file.seek, offset)
            while chunk := await asyncio.to_thread(file.read, chunk_bytes):
                yield chunk

    async def list(self) -> tuple[ArtifactInfo, ...]:
        """Return every artifact, newest first."""
        infos = await asyncio.to_thread(self._all)
        return tuple(sorted(infos, key=lambda info: (info.create_time, info.sha256), reverse=True))

    async def delete(self, sha256: str) -> None:
        """Forget an artifact.

        Raises:
            ResourceNotFoundError: If there is none.
        """
        info = await self.stat(sha256)
        await asyncio.to_thread(self._fs.rm, self._path(info.sha256))
        await asyncio.to_thread(self._fs.rm, self._path(info.sha256) + ".json")

    def _publish(self, temporary: str, sha256: str, size: int, media_type: str) -> ArtifactInfo:
        path = self._path(sha256)
        if self._fs.exists(path) and self._fs.exists(path + ".json"):
            return self._stat(sha256)
        info = ArtifactInfo(
            sha256=sha256, size=size, media_type=media_type, create_time=timestamp(self._clock.now())
        )
        self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        described = f"{self._root}/incoming/{TEMPORARY}{uuid4().hex}"
        try:
            with self._fs.open(described, "wb") as file:
                file.write(encode(info))
                _sync(file)
            self._fs.mv(described, path + ".json")
            self._fs.mv(temporary, path)
        finally:
            if self._fs.exists(described):
                self._fs.rm(described)
        return info

    def _stat(self, sha256: str) -> ArtifactInfo:
        digest = id_in("artifacts", sha256)
        if not _DIGEST.fullmatch(digest):
            raise InvalidRequestError(f"{sha256!r} is not a sha256 in lower case hex", field="name")
        path = self._path(digest)
        if not (self._fs.exists(path) and self._fs.exists(path + ".json")):
            raise ResourceNotFoundError(f"there is no artifact {digest}", name=f"artifacts/{digest}")
        return decode(ArtifactInfo, self._fs.cat_file(path + ".json"), what=f"artifacts/{digest}")

    def _all(self) -> tuple[ArtifactInfo, ...]:
        found = self._fs.glob(f"{self._root}/objects/*/*.json")
        digests = [path.rsplit("/", 1)[1].removesuffix(".json") for path in found]
        return tuple(self._stat(digest) for digest in digests if self._fs.exists(self._path(digest)))

    def _path(self, digest: str) -> str:
        return f"{self._root}/objects/{digest[:2]}/{digest}"


def _require_digest(actual: str, expected: str | None) -> None:
    if expected is not None and actual != expected:
        raise HashMismatchError(
            f"the bytes have the digest {actual}, not the announced {expected}; send them again",
            expected=expected,
            actual=actual,
        )


def _sync(file: IO[bytes] | Any) -> None:
    """Make a file durable where the file system has such a notion."""
    file.flush()
    descriptor = getattr(file, "fileno", None)
    if descriptor is None:
        return
    try:
        os.fsync(descriptor())
    except OSError as error:
        # Files in memory and in object stores have no descriptor: io.UnsupportedOperation is an OSError.
        if error.errno is not None:
            raise
