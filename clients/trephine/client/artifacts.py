"""Reading stored bytes, checked against the digest that is their name."""

from __future__ import annotations

import hashlib

from trephine.client.errors import HashMismatchError
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


def checked(name: str, data: bytes) -> bytes:
    """Bytes that are what their name says.

    Raises:
        HashMismatchError: If they are not.
    """
    if hashlib.sha256(data).hexdigest() != name.removeprefix("artifacts/"):
        raise HashMismatchError(f"{name} arrived with another digest than its name; try again")
    return data
