"""A clean process for what is measured or attacked on an exported folder: started, polled, ended."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from trephine.domain.commands import Progress
from trephine.domain.errors import DeadlinePassedError, DiskFullError, GateMissedError
from trephine.engine.models.staging import full_disk_refused

TIME_LIMIT_SECONDS = 1800.0
"""At least; larger models are given more, and longer trainings."""
_PLAIN_PARAMETERS = 50_000_000
"""Of a model that the plain limit is for. One of 135 million was attacked in 10 to 18 minutes of one core."""
_LATE = "free processors and memory for it, and try again"
_POLL_SECONDS = 0.03
_PASSED_ON = (
    *("LANG", "LD_LIBRARY_PATH", "TMPDIR", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"),
    *("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"),
)
"""How the process computes, never what."""
_LEAST_ROOM = 1 << 20
"""Bytes; with fewer free, what fails has failed for want of them, for its own last words lie on that disk."""
_NO_ROOM = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)))


def run_clean(
    arguments: Sequence[str],
    work: Path,
    what: str,
    failure: str,
    *,
    patience: float = 1.0,
    late: str = _LATE,
) -> Generator[Progress | None, None, dict[str, Any]]:
    """Run Python on arguments and follow it to its result; it ends with this generator.

    It says lines of JSON: progress, at last `{"result": {...}}`.

    Args:
        arguments: Of the interpreter.
        work: Folder to run in and to keep its output.
        what: Names it in errors: `certification`.
        failure: What it means if it ends without a result.
        patience: Share of the time limit that it may take.
        late: What to do if it takes longer.

    Raises:
        GateMissedError: If it ends without a result.
        DiskFullError: If that is because it found no room.
        DeadlinePassedError: If it does not finish in time.
    """
    output, errors, limit = work / "stdout", work / "stderr", TIME_LIMIT_SECONDS * patience
    process = _start(arguments, work, output, errors)
    deadline, told = time.monotonic() + limit, None
    try:
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise DeadlinePassedError(
                    f"{what} in a clean process took longer than {limit:.0f} s; nothing was published. To be "
                    f"in time, {late}"
                )
            time.sleep(_POLL_SECONDS)
            line = _last_line(output)
            yield Progress(**line) if line and line != told and "stage" in line else None
            told = line
    finally:
        _end(process)
    line = _last_line(output)
    if process.returncode != 0 or "result" not in line:
        tail = " | ".join(errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:])
        if _found_no_room(tail, work):
            raise DiskFullError(
                f"{what} in a clean process found no room on the disk, and nothing was published; make room, "
                "or choose another export root, and export again"
            )
        raise GateMissedError(f"{failure} (exit {process.returncode}): {tail[-600:]}")
    found: dict[str, Any] = line["result"]
    return found


def _found_no_room(last_words: str, work: Path) -> bool:
    """Say whether a process ended because its disk is full; then it may not even have been able to say so."""
    return any(why in last_words for why in _NO_ROOM) or shutil.disk_usage(work).free < _LEAST_ROOM


def patience_for(parameters: int) -> float:
    """Return how many time limits a model of this size is given: one or more."""
    return max(1.0, parameters / _PLAIN_PARAMETERS)


def _start(arguments: Sequence[str], work: Path, output: Path, errors: Path) -> subprocess.Popen[bytes]:
    """Start it elsewhere, in its own process group, without a network."""
    with full_disk_refused(), output.open("wb") as out, errors.open("wb") as err:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=work,
            env=clean_environment(work),
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )


def clean_environment(home: Path) -> dict[str, str]:
    """Return what such a process sees of the environment: how it computes, no tokens or proxies, no hub."""
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return environment | {name: os.environ[name] for name in _PASSED_ON if name in os.environ}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the process group if it still runs, and reap it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _last_line(path: Path) -> dict[str, Any]:
    """Return the last complete line of JSON, or an empty one."""
    lines = path.read_bytes().split(b"\n")[:-1]
    return json.loads(lines[-1]) if lines else {}
