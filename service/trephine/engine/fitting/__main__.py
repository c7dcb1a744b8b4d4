"""`python -m trephine.engine.fitting REQUEST.json`: one fit, in a process of its own.

Lines of JSON go to stdout: progress, at last `{"report": true}` or `{"error": {...}}`. The process ends when
its stdin closes, so that it never outlives the engine that started it; what it has checkpointed stays.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from trephine.domain.commands import Progress
from trephine.domain.errors import FitFailedError, ParentChangedError, TrephineError
from trephine.domain.models import ModelSource
from trephine.engine.fitting.fit import Fit
from trephine.engine.fitting.request import FitRequest, Workspace, read_request
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.loading import load_hosted
from trephine.engine.models.quanta import finish
from trephine.ipc.codec import error_to_tree

NICENESS = 10
LOCK_SECONDS = 20.0
"""An earlier process may still be ending."""
_SAID_EVERY = 0.5


def main() -> int:
    """Fit what the request says."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.nice(NICENESS)
    request = read_request(Path(sys.argv[1]))
    torch.set_num_threads(request.threads)
    try:
        with Workspace(work=Path(request.checkpoints)).lock.open("w") as lock:
            _take(lock.fileno())
            Fit(request=request, hosted=load_unchanged(request), say=Voice()).run()
    except TrephineError as error:
        write_line({"error": error_to_tree(error)})
        return 1
    write_line({"report": True})
    return 0


class Voice:
    """Says progress, at most twice a second; a new stage at once."""

    def __init__(self) -> None:
        self._stage, self._last = "", 0.0

    def __call__(self, progress: Progress) -> None:
        """Print one line."""
        now = time.monotonic()
        if progress.stage == self._stage and not progress.detail and now - self._last < _SAID_EVERY:
            return
        self._stage, self._last = progress.stage, now
        write_line(asdict(progress))


def write_line(line: dict[str, Any]) -> None:
    """Print one line of JSON."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def load_unchanged(request: FitRequest) -> HostedModel:
    """Load the model, from the very weights that the engine hosts.

    Raises:
        ParentChangedError: If the folder holds others now.
    """
    source = ModelSource(
        name=request.model_name,
        folder=request.model_folder,
        dtype=request.dtype,  # type: ignore[arg-type]
        device=request.device,
    )
    hosted = finish(load_hosted(source))
    if hosted.info.weight_hash != request.weight_hash:
        raise ParentChangedError(
            "the model's folder no longer holds the weights that are loaded; load the model again",
            expected=request.weight_hash,
            found=hosted.info.weight_hash,
        )
    return hosted


def _take(descriptor: int) -> None:
    """Hold the folder's lock for as long as this process lives."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise FitFailedError("another process is working on this fit already; wait for it") from None
            time.sleep(0.1)


def _end_with_parent() -> None:
    while os.read(0, 1):  # raw: a buffered reader would hold a lock at exit
        pass
    os._exit(70)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)
