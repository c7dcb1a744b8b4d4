"""A lease: the open connection that keeps a local server alive.

The kernel closes it when this process ends, however it ends, so that a killed command leaves no server
behind.
"""

from __future__ import annotations

import socket
from pathlib import Path
from threading import Lock

from trephine.client.errors import ServerUnreachableError

CONNECT_SECONDS = 5.0


class Lease:
    """One connection to a server's lease socket, open while this client lives."""

    def __init__(self, path: str) -> None:
        """Connect.

        Raises:
            OSError: If nobody listens there.
        """
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._roots: set[Path] = set()
        self._lock = Lock()
        try:
            self._socket.settimeout(CONNECT_SECONDS)
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise

    def add_root(self, folder: Path) -> None:
        """Let the server read models below this folder of the same user."""
        resolved = folder.resolve()
        with self._lock:
            if resolved in self._roots:
                return
            self._say(f"root {resolved}")
            self._roots.add(resolved)

    def detach(self) -> None:
        """Let the server finish running operations after this client has left."""
        with self._lock:
            self._say("detach")

    def release(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _say(self, line: str) -> None:
        if "\n" in line:
            raise ServerUnreachableError("a folder's name must not contain a line break")
        try:
            self._socket.sendall(line.encode() + b"\n")
        except OSError as failure:
            raise ServerUnreachableError(f"the local server is gone: {failure}") from failure
