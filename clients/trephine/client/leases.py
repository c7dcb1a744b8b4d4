"""A lease: the open connection that keeps a local server alive.

The kernel closes it when this process ends, however it ends, so that a killed command leaves no server
behind.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from threading import Lock

from trephine.client.errors import InvalidRequestError, PathDeniedError, ServerUnreachableError

CONNECT_SECONDS = 5.0


class Lease:
    """One connection to a server's lease socket, open while this client lives."""

    def __init__(self, path: str) -> None:
        """Connect.

        Raises:
            OSError: If nobody listens there.
        """
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._roots: set[tuple[str, Path]] = set()
        self._lock = Lock()
        try:
            self._socket.settimeout(CONNECT_SECONDS)
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise

    def add_root(self, folder: Path) -> None:
        """Let the server read models below this folder of the same user.

        Raises:
            PathDeniedError: If the server refuses it.
        """
        self._share("root", folder)

    def share_replacements(self, folder: Path) -> None:
        """Let the server read replacement sets and datasets in this folder of the same user.

        Raises:
            PathDeniedError: If the server refuses it.
        """
        self._share("replacement", folder)

    def detach(self) -> None:
        """Let the server finish running operations after this client has left."""
        with self._lock:
            self._say("detach")

    def release(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _share(self, word: str, folder: Path) -> None:
        resolved = folder.resolve()
        with self._lock:
            if (word, resolved) in self._roots:
                return
            self._say(f"{word} {resolved}")
            self._roots.add((word, resolved))

    def _say(self, line: str) -> None:
        if "\n" in line:
            raise InvalidRequestError("a folder's name must not contain a line break")
        try:
            self._socket.sendall(os.fsencode(line) + b"\n")
            answer = self._answer()
        except OSError as failure:
            raise ServerUnreachableError(f"the local server is gone: {failure}") from failure
        if answer != "ok":
            raise PathDeniedError(answer.removeprefix("error "))

    def _answer(self) -> str:
        """One line. The server says nothing unasked, so nothing of a next line is lost."""
        data = bytearray()
        while not data.endswith(b"\n"):
            piece = self._socket.recv(4096)
            if not piece:
                raise ConnectionError("it closed the connection")
            data += piece
        return data.decode("utf-8", "replace").strip()
