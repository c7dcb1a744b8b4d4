"""Child processes of ours: one socket, an own process group, a minimal environment, stderr as logs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import structlog

LogSink = Callable[[Mapping[str, Any]], None]
"""Takes one log record of a child: `event`, `level` and further fields."""

GRACE_SECONDS = 5.0
_LONGEST_LINE = 1 << 18

_INHERITED = frozenset(
    {"HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONHASHSEED", "PYTHONPATH", "TMPDIR", "TZ"}
    | {"USER", "VIRTUAL_ENV"}
)
_ACCELERATORS = ("CUDA_", "CUBLAS_", "HIP_", "MKL_", "NCCL_", "NVIDIA_", "OMP_", "PYTORCH_", "ROCR_", "TORCH")
_INHERITED_PREFIXES = (*_ACCELERATORS, "TREPHINE_", "XDG_")
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads of a parallel region sleep while they wait: spinning ones stop a shared machine for seconds.
    "GOMP_SPINCOUNT": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
    # Freed activations are used again: given back, each is mapped and cleared anew, a tenth of the time.
    "MALLOC_MMAP_THRESHOLD_": str(128 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    "PYTHONUNBUFFERED": "1",
}


def child_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a child of ours sees of the environment: enough to run, no tokens or proxies, hubs offline."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in _INHERITED or name.startswith(_INHERITED_PREFIXES)
    }
    return {**inherited, **_OFFLINE, **(extra or {})}


async def _spawn(module: str, fd: int, arguments: Sequence[str], environment: Mapping[str, str]) -> Process:
    """Start an interpreter in a session of its own that inherits one socket and writes its log to a pipe."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", module, "--fd", str(fd), *arguments),
        pass_fds=(fd,),
        start_new_session=True,
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=PIPE,
        env=environment,
    )


def log_record(record: Mapping[str, Any]) -> None:
    """Pass a child's log record on to our own log."""
    fields = {key: value for key, value in record.items() if key not in ("event", "level")}
    level = record.get("level", "info")
    method = level if level in ("debug", "info", "warning", "error", "critical") else "info"
    getattr(structlog.get_logger("trephine.child"), method)(str(record.get("event", "")), **fields)


class Child:
    """A running child process and our end of its socket.

    It is started as `python -P -m MODULE --fd N ARGUMENTS`: no file of the current folder shadows a module.
    """

    def __init__(self, process: Process, sock: socket.socket, sink: LogSink) -> None:
        self._process = process
        self.socket = sock
        self._logs = asyncio.create_task(self._forward_logs(sink), name="child-logs")

    @classmethod
    async def start(
        cls,
        module: str,
        arguments: Sequence[str] = (),
        *,
        sink: LogSink = log_record,
        environment: Mapping[str, str] | None = None,
    ) -> Child:
        """Start a Python module that talks over `--fd`.

        Raises:
            OSError: If no process can be started.
        """
        ours, theirs = socket.socketpair()
        fd = theirs.fileno()
        try:
            process = await _spawn(module, fd, arguments, child_environment(environment))
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return cls(process, ours, sink)

    @property
    def pid(self) -> int:
        """Its process id, also the id of its process group."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """True until it has ended and was reaped."""
        return self._process.returncode is None

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.returncode

    async def stop(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """End the whole process group: terminate, wait for `grace_seconds`, kill. May be called again."""
        if self.alive:
            self._signal(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_seconds):
                await self._process.wait()
        self._signal(signal.SIGKILL)
        await self._process.wait()
        self.socket.close()
        # A descendant that left the group could hold stderr open: its logs are not waited for.
        await asyncio.wait([self._logs], timeout=1.0)
        self._logs.cancel()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    async def _forward_logs(self, sink: LogSink) -> None:
        stream, rest = self._process.stderr, b""
        while stream is not None and (chunk := await stream.read(1 << 16)):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._forward_line(line, sink)
            rest = rest[-_LONGEST_LINE:]
        self._forward_line(rest, sink)

    def _forward_line(self, line: bytes, sink: LogSink) -> None:
        text = line.decode("utf-8", "replace").strip()
        if text:
            sink({**_record(text), "pid": self._process.pid})


def _record(text: str) -> dict[str, Any]:
    try:
        record = json.loads(text)
    except ValueError:
        return {"event": text, "level": "warning"}
    return record if isinstance(record, dict) else {"event": text, "level": "warning"}
