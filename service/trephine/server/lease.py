"""Leases: open connections of clients that keep an ephemeral server alive.

The kernel closes the connection of a client that ends in any way, so that `kill -9` of a command leaves
no server behind. A client may say three lines: `root PATH` adds a model root, `replacement PATH` lets
replacement sets be read from a folder, `detach` lets the server finish running operations after the client
has left. Each is answered by `ok` or `error MESSAGE`. That somebody said `detach` is kept in a file: a server
that takes over after a crash finishes what was to be finished, too, and not only while a command looks at it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import structlog

from trephine.domain.errors import InvalidRequestError, PathDeniedError, TrephineError

FIRST_SECONDS = 15.0
"""How long a fresh server waits for its first client."""
LINGER_SECONDS = 2.0
"""How long a server waits for the next command after the last one."""
_BUSY_POLL_SECONDS = 0.5
_LONGEST_LINE = 8192
_LOG = structlog.get_logger("trephine.lease")


class Leases:
    """Counts open leases and carries out what their clients say.

    Args:
        add_root: Called with a folder that models may be loaded from.
        share_replacements: Called with a folder that replacement sets may be loaded from.
        wish: File that is there while operations are to be finished with nobody there.
        first_seconds: See `FIRST_SECONDS`.
        linger_seconds: See `LINGER_SECONDS`.
    """

    def __init__(
        self,
        *,
        add_root: Callable[[Path], None],
        share_replacements: Callable[[Path], None],
        wish: Path,
        first_seconds: float = FIRST_SECONDS,
        linger_seconds: float = LINGER_SECONDS,
    ) -> None:
        self._folders = {"root": add_root, "replacement": share_replacements}
        self._patience = first_seconds
        self._linger = linger_seconds
        self._open: set[asyncio.StreamWriter] = set()
        self._some, self._none = asyncio.Event(), asyncio.Event()
        self._none.set()
        self._server: asyncio.Server | None = None
        self._wish = wish

    async def start(self, path: Path) -> None:
        """Listen on a Unix socket that only its owner can open."""
        self._server = await asyncio.start_unix_server(self._serve, path, limit=_LONGEST_LINE)
        path.chmod(0o600)

    async def close(self) -> None:
        """Take no further leases and end the open ones."""
        if self._server is not None:
            self._server.close()
        for writer in tuple(self._open):
            writer.close()

    async def until_unused(self, running: Callable[[], int]) -> None:
        """Return once no lease has been open for a while and no detached operation runs.

        Args:
            running: How many operations have not ended.
        """
        while await self._used() or (self.detached and running()):
            if self._none.is_set():
                await asyncio.sleep(_BUSY_POLL_SECONDS)
        if not running():
            self._wish.unlink(missing_ok=True)

    @property
    def detached(self) -> bool:
        """True if a client, of this server or of one that crashed, asked that operations be finished."""
        return self._wish.exists()

    async def _used(self) -> bool:
        """Wait for a lease, then for the last one to end; False if none came in time."""
        try:
            async with asyncio.timeout(self._patience):
                await self._some.wait()
        except TimeoutError:
            return False
        self._patience = self._linger
        await self._none.wait()
        return True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        self._none.clear()
        self._some.set()
        try:
            while line := await reader.readline():
                writer.write(self._answer(line, writer).encode("utf-8", "replace") + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError):
            _LOG.info("lease broken off")  # the client is gone, or it sent a line beyond the limit
        finally:
            self._open.discard(writer)
            if not self._open:
                self._some.clear()
                self._none.set()
            writer.close()

    def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> str:
        try:
            self._carry_out(os.fsdecode(line).rstrip("\n"), writer)
        except TrephineError as error:
            return f"error {error.message}".replace("\n", " ")
        return "ok"

    def _carry_out(self, line: str, writer: asyncio.StreamWriter) -> None:
        word, _, argument = line.partition(" ")
        match word:
            case "detach":
                self._wish.touch(mode=0o600)
            case "root" | "replacement":
                _require_same_user(writer)
                folder = Path(argument)
                if not folder.is_absolute() or not folder.is_dir():
                    raise InvalidRequestError(f"{word} needs an absolute path of a folder, got {argument!r}")
                self._folders[word](folder)
            case _:
                raise InvalidRequestError("a lease understands `detach`, `root PATH` and `replacement PATH`")


def _require_same_user(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    if uid != os.getuid():
        raise PathDeniedError("only the server's own user may add a folder")
