"""The fitting process as the engine sees it: started, polled, ended. No torch here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, BinaryIO

from trephine.domain.commands import Progress
from trephine.domain.errors import FitFailedError
from trephine.engine.fitting.request import Workspace
from trephine.ipc.codec import error_from_tree

MODULE = "trephine.engine.fitting"
_POLL_SECONDS = 0.02
_TAIL_BYTES = 1 << 14
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
}


def run_process(space: Workspace) -> Generator[Progress | None, None, None]:
    """Start the process on a workspace that holds a request, and follow it to its end.

    It ends with this generator, whatever the reason; what it has checkpointed stays.

    Raises:
        FitFailedError: If it ends without a report.
        TrephineError: What it says itself.
    """
    process = _start(space)
    said: dict[str, Any] = {}
    try:
        with (space.work / "stdout").open("rb") as output, (space.work / "stderr").open("rb") as errors:
            while process.poll() is None:
                time.sleep(_POLL_SECONDS)
                line = _last_line(output)
                yield Progress(**line) if line != said and "stage" in line else None
                said = line
            _judge(_last_line(output), process.returncode, errors)
    finally:
        _end(process)


def _start(space: Workspace) -> subprocess.Popen[bytes]:
    """Start it in a process group of its own, without a network, where it can find nothing by accident."""
    with (space.work / "stdout").open("wb") as out, (space.work / "stderr").open("wb") as err:
        return subprocess.Popen(
            [sys.executable, "-m", MODULE, str(space.request)],
            cwd=space.work,
            env=os.environ | _OFFLINE,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process group if it still runs, and reap it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _judge(line: dict[str, Any], status: int, errors: BinaryIO) -> None:
    if "error" in line:
        raise error_from_tree(line["error"])
    if status != 0 or "report" not in line:
        tail = " | ".join(errors.read().decode("utf-8", "replace").strip().splitlines()[-3:])[-600:]
        said = f", saying: {tail}" if tail else ""
        raise FitFailedError(
            "the fitting process ended without a set; what it had checkpointed is kept, start the fit again "
            f"to go on from there (exit {status}{said})",
            exit=status,
        )


def _last_line(output: BinaryIO) -> dict[str, Any]:
    """Return the last complete line of JSON, or an empty one."""
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - _TAIL_BYTES))
    lines = output.read().split(b"\n")[:-1]
    return json.loads(lines[-1]) if lines else {}


def is_free(folder: Path) -> bool:
    """Say whether a folder is empty, or not there."""
    return not folder.exists() or not any(folder.iterdir())
