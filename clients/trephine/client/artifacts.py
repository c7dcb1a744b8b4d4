"""Reading stored bytes, checked against the digest that is their name."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from trephine.client.errors import HashMismatchError
from trephine.client.uploads import write_requests
from trephine.client.wire import Wire
from trephine.v1 import artifact_service_pb2


class Artifacts:
    """Immutable bytes, addressed by their content."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def read(self, name: str) -> bytes:
        """A whole (small) artifact: a page, a report.

        Raises:
            HashMismatchError: If the bytes are not the ones that the name promises.
        """
        request = artifact_service_pb2.ReadRequest(name=name)
        pieces = self._wire.stream(self._wire.artifacts.Read, request)
        return checked(name, b"".join(piece.data for piece in pieces))

    def upload(self, source: bytes | Path, *, media_type: str) -> str:
        """Store bytes or a file; return the resource name. Storing them again is no error.

        Raises:
            LocalFileError: If the file cannot be read.
        """
        write: Any = self._wire.artifacts.Write
        written = self._wire.call(write, write_requests(source, media_type))
        return str(written.artifact.name)


def checked(name: str, data: bytes) -> bytes:
    """Bytes that are what their name says.

    Raises:
        HashMismatchError: If they are not.
    """
    if hashlib.sha256(data).hexdigest() != name.removeprefix("artifacts/"):
        raise HashMismatchError(f"{name} arrived with another digest than its name; try again")
    return data
