"""The process behind `warm_processes.py`: imports modules once, then forks a process for each request.

    python warm_host.py FD MODULE[:FUNCTION:ARGUMENT...]...

A request comes over the Unix socket: JSON `{"arguments": [...], "folder": ..., "environment": {...}}`,
where the arguments are an interpreter's, a script's path or `-m MODULE` first, and descriptors: first the
one to which its number and then its exit status are written, then those that it shall have, from its
standard input on. It imports nothing of Trephine but what it is told to, and a fork begins with nothing
but what was imported, and what functions of these modules that it is told to call compute once and keep.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
import traceback
from contextlib import suppress
from importlib import import_module
from typing import Any

_MOST_BYTES = 1 << 16


def main() -> None:
    """Fork until the socket is closed."""
    number, *modules = sys.argv[1:]
    for words in modules:
        module, *call = words.split(":")
        found = import_module(module)
        if call:
            getattr(found, call[0])(*call[1:])
    gc.freeze()  # a fork's collections would go through all of it, and copy the pages that it lies on
    requests = socket.socket(fileno=int(number))
    ended, wake = os.pipe()
    for end in (ended, wake):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda signum, frame: None)
    running: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([requests, ended], [], [])
        if ended in ready:
            os.read(ended, _MOST_BYTES)
            _report(running)
        if requests in ready:
            text, descriptors, _, _ = socket.recv_fds(requests, _MOST_BYTES, 8)
            if not text:
                return
            _start(json.loads(text), descriptors, running)


def _start(request: dict[str, Any], descriptors: list[int], running: dict[int, int]) -> None:
    status, *streams = descriptors
    process = os.fork()
    if process == 0:
        _become(request, streams)
    running[process] = status
    _tell(status, process)
    for stream in streams:
        os.close(stream)


def _report(running: dict[int, int]) -> None:
    """Tell the statuses of those that have ended."""
    while running:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process == 0:
            return
        told = running.pop(process)
        _tell(told, os.waitstatus_to_exitcode(status))
        os.close(told)


def _tell(status: int, value: int) -> None:
    with suppress(BrokenPipeError):  # whoever asked has ended
        os.write(status, f"{value}\n".encode())


def _become(request: dict[str, Any], streams: list[int]) -> None:
    """Be the process that was asked for, in a session of its own; never returns."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        os.chdir(request["folder"])
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        os.closerange(len(streams), max(streams) + 1)
        os.environ.clear()
        os.environ.update(request["environment"])
        _run(request["arguments"])
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(arguments: list[str]) -> None:
    """Run what an interpreter would run."""
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main()
