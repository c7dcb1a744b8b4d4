"""The process an auditor runs in: its own group, next to no environment, an empty folder, bounded output.

This contains accidents (crashes, hangs, floods of output, leftovers), not malice: it runs as the same user.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from contextlib import suppress
from tempfile import TemporaryDirectory

_INHERITED = ("LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "SYSTEMROOT", "TZ", "VIRTUAL_ENV")
_FIXED = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONUNBUFFERED": "1",
}
KEPT_OUTPUT_BYTES = 64 << 10
"""The last bytes of output are kept; what came before is counted."""


def auditor_environment(folder: str) -> dict[str, str]:
    """All that an auditor sees of the environment: no tokens, no settings of the service, no model paths."""
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {**inherited, **_FIXED, "HOME": folder, "TMPDIR": folder}


class AuditorProcess:
    """A running auditor process, our end of its socket, and the end of its output."""

    def __init__(self, process: Process, sock: socket.socket, folder: TemporaryDirectory[str]) -> None:
        self._process = process
        self._folder = folder
        self._output = bytearray()
        self._dropped = 0
        self._reading = asyncio.create_task(self._read_output(), name="auditor-output")
        self.socket = sock

    @classmethod
    async def start(cls, module: str) -> AuditorProcess:
        """Start `python -P -m MODULE --fd N`.

        Raises:
            OSError: If no process can be started.
        """
        ours, theirs = socket.socketpair()
        folder = TemporaryDirectory(prefix="trephine-auditor-", ignore_cleanup_errors=True)
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", module, "--fd", str(theirs.fileno())),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                cwd=folder.name,
                stdin=DEVNULL,
                stdout=PIPE,
                stderr=STDOUT,
                env=auditor_environment(folder.name),
            )
        except BaseException:
            ours.close()
            folder.cleanup()
            raise
        finally:
            theirs.close()
        return cls(process, ours, folder)

    @property
    def pid(self) -> int:
        """Its process id, also the id of its process group."""
        return self._process.pid

    @property
    def output(self) -> str:
        """The end of what it printed."""
        return self._output.decode("utf-8", "replace")

    @property
    def dropped_bytes(self) -> int:
        """How much of what it printed was not kept."""
        return self._dropped

    async def ended(self, within_seconds: float) -> int | None:
        """Wait a little for its end; its exit status, or None if it still runs."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_seconds):
                return await self._process.wait()
        return None

    async def kill(self) -> None:
        """Kill the whole process group, reap it, remove its folder. May be called again."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        # A descendant that left the group could hold the pipe open: its output is not waited for.
        await asyncio.wait([self._reading], timeout=1.0)
        self._reading.cancel()
        self._folder.cleanup()

    async def _read_output(self) -> None:
        stream = self._process.stdout
        while stream is not None and (chunk := await stream.read(1 << 16)):
            self._output += chunk
            if (excess := len(self._output) - KEPT_OUTPUT_BYTES) > 0:
                del self._output[:excess]
                self._dropped += excess
