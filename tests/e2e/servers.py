"""Servers of their own for e2e tests, and the processes behind them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from trephine.client import Trephine, connect


@contextmanager
def own_server(state: Path) -> Iterator[Trephine]:
    """Start a server on a fresh state folder as any command would; it ends with the connection."""
    with connect(state=state) as trephine:
        yield trephine


def server_process(state: Path) -> psutil.Process:
    """The process that owns a state folder."""
    return psutil.Process(json.loads((state / "server.json").read_text())["pid"])


def engine_processes(state: Path) -> list[psutil.Process]:
    """The engines of a state folder's server."""
    children = server_process(state).children(recursive=True)
    return [child for child in children if "trephine.engine" in words_of(child)]


def words_of(process: psutil.Process) -> list[str]:
    """Its command line; none once it has ended, which may happen between any two looks."""
    with suppress(psutil.NoSuchProcess):
        return list(process.cmdline())
    return []


def kill(process: psutil.Process) -> None:
    """End a process as the kernel's memory killer does: no farewell."""
    os.kill(process.pid, signal.SIGKILL)


def wait_for(condition: Callable[[], bool], *, seconds: float = 120.0) -> None:
    """Wait until something holds.

    Raises:
        TimeoutError: If it does not within the guard.
    """
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError(f"still not so after {seconds:.0f} s")
        time.sleep(0.05)
