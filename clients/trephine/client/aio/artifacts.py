"""Reading stored bytes, checked against the digest that is their name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trephine.client.aio.wire import AsyncWire
from trephine.client.stored_bytes import checked
from trephine.client.uploads import write_requests
from trephine.v1 import artifact_service_pb2


class AsyncArtifacts:
    """Immutable bytes, addressed by their content."""

    def __init__(self, wire: AsyncWire) -> None:
        self._wire = wire

    async def read(self, name: str) -> bytes:
        """A whole (small) artifact: a page, a report.

        Raises:
            HashMismatchError: If the bytes are not the ones that the name promises.
        """
        request = artifact_service_pb2.ReadRequest(name=name)
        pieces = self._wire.stream(self._wire.artifacts.Read, request)
        return checked(name, b"".join([piece.data async for piece in pieces]))

    async def upload(self, source: bytes | Path, *, media_type: str) -> str:
        """Store bytes or a file; return the resource name. Storing them again is no error.

        Raises:
            LocalFileError: If the file cannot be read.
        """
        write: Any = self._wire.artifacts.Write  # takes requests one after another, where others take one
        written = await self._wire.call(write, write_requests(source, media_type))
        return str(written.artifact.name)
