"""Processes whose libraries are imported already: a start takes milliseconds and not seconds.

What certifies or attacks an export, and an engine, run in processes of their own, and importing torch and
transformers is nearly all that this costs on a tiny model. `WarmHost` forks them off a process that has
imported modules and done no more than `LIBRARIES` says. `WarmCleanProcesses.start` stands for
`clean_process._start`: the same arguments, folder, environment, streams, session and end.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from trephine.engine.certificates import clean_process

HOST = Path(__file__).with_name("warm_host.py")
LIBRARIES = (
    "torch",
    "safetensors.torch",
    "transformers.models.llama.modeling_llama",
    "transformers.conversion_mapping:get_checkpoint_conversion_mapping:llama",
)
"""Other families' modules add little to what Llama's import. The last builds the patterns of all families,
a thousand regular expressions, which the first load of a checkpoint does otherwise."""
COLD = clean_process._start


class WarmHost:
    """Forks processes off one that is ready; that one is started for the first."""

    def __init__(
        self, folder: Path, flag: str, environment: Mapping[str, str], modules: Sequence[str] = LIBRARIES
    ) -> None:
        """Take a folder to run in, how its interpreter is started, and what it imports, or calls in it."""
        self._folder, self._environment = folder, dict(environment)
        self._words = (flag, modules)
        self._process: subprocess.Popen[bytes] | None = None
        self._requests: socket.socket | None = None

    @classmethod
    def sharing(cls, requests: socket.socket) -> WarmHost:
        """Use a host that another process has started."""
        host = cls(Path(), "", {})
        host._requests = requests
        return host

    @property
    def requests(self) -> socket.socket:
        """Where it takes requests, by whoever has this socket."""
        if self._requests is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            flag, modules = self._words
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, flag, str(HOST), str(theirs.fileno()), *modules],
                    cwd=self._folder,
                    env=self._environment,
                    pass_fds=[theirs.fileno()],
                )
            self._requests = ours
        return self._requests

    def fork(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], streams: Sequence[int]
    ) -> int:
        """Start a process; return where its number and, once it has ended, its exit status can be read.

        Args:
            arguments: A script's path or `-m MODULE`, and what it is given.
            folder: To run in.
            environment: All of it.
            streams: Descriptors that it gets, as 0, 1, 2 and further.
        """
        request = {"arguments": list(arguments), "folder": str(folder), "environment": dict(environment)}
        status, told = os.pipe()
        try:
            socket.send_fds(self.requests, [json.dumps(request).encode()], [told, *streams])
        finally:
            os.close(told)
        return status

    def close(self) -> None:
        """End it, if it was started."""
        if self._requests is not None and self._process is not None:
            self._requests.close()
            self._process.wait()


def next_number(status: int) -> int:
    """Read a line of what a host tells of a process.

    Raises:
        RuntimeError: If the host has ended.
    """
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(status, 1)
        if not byte:
            raise RuntimeError("the host of warm processes has ended")
        line += byte
    return int(line)


class WarmProcess:
    """A process that the host forked, with what `clean_process` uses of a `Popen`."""

    def __init__(self, status: int, stdin: BinaryIO) -> None:
        self._status = status
        self.stdin = stdin
        self.returncode: int | None = None
        self.pid = next_number(status)

    def poll(self) -> int | None:
        """Its exit status, or None while it runs."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self) -> int:
        """Wait for its end."""
        if self.returncode is None:
            self.returncode = next_number(self._status)
            os.close(self._status)
        return self.returncode


class WarmCleanProcesses:
    """Starts clean processes by a host."""

    def __init__(self, host: WarmHost) -> None:
        self._host = host

    def start(self, arguments: Sequence[str], work: Path, output: Path, errors: Path) -> Any:
        """Start one: what `clean_process._start` does."""
        if arguments[0] != "-I":
            return COLD(arguments, work, output, errors)
        theirs, ours = os.pipe()
        with output.open("wb") as out, errors.open("wb") as err:
            streams = [theirs, out.fileno(), err.fileno()]
            environment = clean_process.clean_environment(work)
            status = self._host.fork(arguments[1:], work, environment, streams)
        os.close(theirs)
        return WarmProcess(status, os.fdopen(ours, "wb"))


class WarmRuns:
    """Stands for the module `subprocess` where a bench runs one isolated script and reads what it says."""

    PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL

    def __init__(self, host: WarmHost) -> None:
        self._host = host

    def run(
        self,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdout: int,
        stderr: int,
        check: bool,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a script in a fork: what `subprocess.run` does of it.

        Raises:
            subprocess.CalledProcessError: If it fails.
        """
        assert (command[:2], stdout, stderr, check) == ([sys.executable, "-I"], self.PIPE, self.DEVNULL, True)
        nothing, (read, write) = os.open(os.devnull, os.O_RDWR), os.pipe()
        try:
            status = self._host.fork(command[2:], cwd, env, [nothing, write, nothing])
        finally:
            os.close(nothing)
            os.close(write)
        next_number(status)  # its own
        with os.fdopen(read, "rb") as said:
            out = said.read()
        code = next_number(status)
        os.close(status)
        if code != 0:
            raise subprocess.CalledProcessError(code, command, out)
        return subprocess.CompletedProcess(command, 0, out)
