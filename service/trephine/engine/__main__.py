"""`python -m trephine.engine --fd N`: one engine process, serving one socket until it closes."""

from __future__ import annotations

import argparse
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from importlib import import_module

from trephine.engine.models.session import Session
from trephine.engine.process import logs
from trephine.engine.process.loop import Equipment, Loop

HANG_SECONDS = 10.0
"""How long a quantum may still run once the service is gone; then the whole process group is killed."""


def main(arguments: list[str] | None = None) -> int:
    """Serve the socket that the parent passed down; return once it is closed."""
    options = _parser().parse_args(arguments)
    logs.configure()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_kill_when_left_behind, args=(options.fd,), daemon=True).start()
    try:
        with socket.socket(fileno=options.fd) as sock:
            _serve(sock, options)
    except SystemExit as leaving:
        return int(leaving.code or 0)
    finally:
        _end_descendants()
    return 0


def _serve(sock: socket.socket, options: argparse.Namespace) -> None:
    log_texts = os.environ.get("TREPHINE_LOG_PROMPTS") == "1"
    loop = Loop(sock, lambda: _equipment(options), Session(), log_texts=log_texts)
    signal.signal(signal.SIGTERM, lambda number, frame: loop.leave())
    loop.run()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trephine.engine")
    parser.add_argument("--fd", type=int, required=True, help="the inherited socket")
    parser.add_argument("--threads", type=int, help="compute threads; torch's choice if left out")
    parser.add_argument("--handlers", metavar="MODULE:ATTRIBUTE", help="what to serve instead of the engine")
    return parser


def _equipment(options: argparse.Namespace) -> Equipment:
    if options.handlers is not None:
        module, _, attribute = options.handlers.partition(":")
        return Equipment(handlers=getattr(import_module(module), attribute))
    import torch

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    from trephine.engine.process.handlers import HANDLERS

    return Equipment(handlers=HANDLERS, quantum=torch.inference_mode)


def _leads_its_group() -> bool:
    return os.getpgrp() == os.getpid()


def _end_descendants() -> None:
    """End what handlers may have started and left behind in this process group."""
    if _leads_its_group():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(os.getpgrp(), signal.SIGTERM)


def _kill_when_left_behind(fd: int) -> None:
    """Kill this process if the service is gone and the loop does not notice in time."""
    poll = select.poll()
    poll.register(fd, 0)  # only a hang-up is reported
    poll.poll()
    time.sleep(HANG_SECONDS)
    if _leads_its_group():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(70)


if __name__ == "__main__":
    status = main()
    # Everything is closed by now; taking torch down in order would only cost its callers a second or two.
    logging.shutdown()
    sys.stderr.flush()
    os._exit(status)
