"""Clean processes whose libraries are imported already: a start takes milliseconds and not seconds.

What certifies or attacks an export runs in a process of its own, and importing torch and transformers is
nearly all that this costs on a tiny model. `WarmHost.start` stands for `clean_process._start`: the same
arguments, folder, environment, streams, session and end, in a fork of a process that has imported these
libraries and nothing else.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from trephine.engine.clean_process import clean_environment

HOST = Path(__file__).with_name("warm_host.py")
LIBRARIES = ("torch", "safetensors.torch", "transformers.models.llama.modeling_llama")
"""Other families' modules add little to what Llama's import."""


class WarmProcess:
    """A process that the host forked, with what `clean_process` uses of a `Popen`."""

    def __init__(self, status: int, stdin: BinaryIO) -> None:
        self._status = status
        self._said = b""
        self.stdin = stdin
        self.returncode: int | None = None
        self.pid = self._next()

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self) -> int:
        """Wait for its end."""
        if self.returncode is None:
            self.returncode = self._next()
            os.close(self._status)
        return self.returncode

    def _next(self) -> int:
        while b"\n" not in self._said:
            more = os.read(self._status, 64)
            if not more:
                raise RuntimeError("the host of warm processes has ended")
            self._said += more
        line, _, self._said = self._said.partition(b"\n")
        return int(line)


class WarmHost:
    """Starts clean processes by forking one that is ready; that one is started at the first."""

    def __init__(self, folder: Path, cold: Callable[..., Any]) -> None:
        """Take a folder to run in, and what starts all that is not isolated."""
        self._folder, self._cold = folder, cold
        self._requests: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, arguments: Sequence[str], work: Path, output: Path, errors: Path) -> Any:
        """Start one: what `clean_process._start` does."""
        if arguments[0] != "-I":
            return self._cold(arguments, work, output, errors)
        requests = self._ready()
        request = {"arguments": list(arguments[1:]), "folder": str(work)}
        request |= {"environment": clean_environment(work)}
        theirs, ours = os.pipe()
        status, told = os.pipe()
        with output.open("wb") as out, errors.open("wb") as err:
            descriptors = [told, theirs, out.fileno(), err.fileno()]
            socket.send_fds(requests, [json.dumps(request).encode()], descriptors)
        os.close(theirs)
        os.close(told)
        return WarmProcess(status, os.fdopen(ours, "wb"))

    def _ready(self) -> socket.socket:
        if self._requests is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", str(HOST), str(theirs.fileno()), *LIBRARIES],
                    cwd=self._folder,
                    env=clean_environment(self._folder),
                    pass_fds=[theirs.fileno()],
                )
            self._requests = ours
        return self._requests

    def close(self) -> None:
        """End the host."""
        if self._requests is not None and self._process is not None:
            self._requests.close()
            self._process.wait()
