"""Engines that start warm: what stands for `trephine.ipc.process._spawn` where a server is tested in process.

    python warm_engines.py FD ENGINE-ARGUMENTS

is such an engine, in a fork that has imported the handlers already; its clean processes are forks as well, of
the host whose socket is FD.
"""

from __future__ import annotations

import asyncio
import os
import runpy
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[1]))

from tests.warm_processes import LIBRARIES, WarmCleanProcesses, WarmHost, next_number
from trephine.engine.certificates import clean_process
from trephine.ipc import process

MODULES = (*LIBRARIES, "trephine.engine.process.handlers")
COLD = process._spawn


class WarmEngine:
    """An engine's process, with what `Child` uses of asyncio's own."""

    def __init__(self, pid: int, status: int, stderr: asyncio.StreamReader) -> None:
        self._status = status
        self._ended = asyncio.get_running_loop().create_future()
        self.pid = pid
        self.stderr = stderr
        self.returncode: int | None = None
        asyncio.get_running_loop().add_reader(status, self._end)

    async def wait(self) -> int:
        """Wait for its end."""
        return await asyncio.shield(self._ended)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._status)
        self.returncode = next_number(self._status)
        os.close(self._status)
        self._ended.set_result(self.returncode)


class WarmEngines:
    """Starts engines by one host, and lets these start clean processes by another."""

    def __init__(self, host: WarmHost, clean: WarmHost) -> None:
        self._host, self._clean = host, clean

    async def spawn(
        self, module: str, fd: int, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> Any:
        """Start an engine as `_spawn` does; all other modules, and other handlers, are started by that."""
        if module != "trephine.engine" or "--handlers" in arguments:
            return await COLD(module, fd, arguments, environment)
        read, write = os.pipe()
        nothing = os.open(os.devnull, os.O_RDWR)
        words = [__file__, "4", "--fd", "3", *arguments]
        streams = [nothing, nothing, write, fd, self._clean.requests.fileno()]
        try:
            status = self._host.fork(words, Path.cwd(), environment, streams)
        finally:
            os.close(write)
            os.close(nothing)
        pid = await asyncio.to_thread(next_number, status)
        stderr = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stderr), os.fdopen(read, "rb")
        )
        return WarmEngine(pid, status, stderr)


def main() -> None:
    """Be an engine whose clean processes are warm."""
    clean = WarmHost.sharing(socket.socket(fileno=int(sys.argv.pop(1))))
    clean_process._start = WarmCleanProcesses(clean).start
    runpy.run_module("trephine.engine", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
