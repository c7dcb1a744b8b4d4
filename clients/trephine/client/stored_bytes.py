"""Stored bytes are named by their digest."""

from __future__ import annotations

import hashlib

from trephine.client.errors import HashMismatchError


def checked(name: str, data: bytes) -> bytes:
    """Bytes that are what their name says.

    Raises:
        HashMismatchError: If they are not.
    """
    if hashlib.sha256(data).hexdigest() != name.removeprefix("artifacts/"):
        raise HashMismatchError(f"{name} arrived with another digest than its name; try again")
    return data
