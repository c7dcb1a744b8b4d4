"""What waits to be written to a socket that is never waited for."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterable

FULL_BYTES = 8 << 20
"""Unwritten bytes above which no job is scheduled until the reader has caught up."""


class Outbox:
    """Bytes on their way out of a non-blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._parts: deque[memoryview] = deque()
        self._size = 0

    def __bool__(self) -> bool:
        return bool(self._parts)

    @property
    def full(self) -> bool:
        """True while so much is unwritten that making more would only use memory."""
        return self._size > FULL_BYTES

    def put(self, parts: Iterable[bytes]) -> None:
        """Queue bytes; nothing is copied."""
        for part in parts:
            if part:
                self._parts.append(memoryview(part))
                self._size += len(part)

    def flush(self) -> None:
        """Write as much as the socket takes now.

        Raises:
            ConnectionError: If the reader is gone.
        """
        while self._parts:
            try:
                sent = self._socket.send(self._parts[0])
            except (BlockingIOError, InterruptedError):
                return
            self._size -= sent
            if sent == len(self._parts[0]):
                self._parts.popleft()
            else:
                self._parts[0] = self._parts[0][sent:]
