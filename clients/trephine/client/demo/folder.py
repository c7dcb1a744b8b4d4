"""The demo's own folder: cleared only if an earlier demo made it."""

from __future__ import annotations

import fcntl
import shutil
import time
from pathlib import Path

from trephine.client.errors import LocalFileError, StateFolderBusyError

MARKER = ".trephine-demo"
_TEXT = "This folder was made by `trephine demo`, which clears it before it writes it anew.\n"
_WAIT_SECONDS = 20.0


def prepare_folder(folder: Path) -> Path:
    """Make the folder, or clear one that carries the demo's marker file.

    Raises:
        LocalFileError: If it holds something else; nothing is touched then.
        StateFolderBusyError: If a server still uses it.
    """
    resolved = folder.absolute()
    try:
        if resolved.exists():
            _clear(resolved)
        resolved.mkdir(parents=True, exist_ok=True)
        (resolved / MARKER).write_text(_TEXT, encoding="utf-8")
    except OSError as failure:
        raise LocalFileError(f"cannot prepare {folder}: {failure}") from failure
    return resolved


def _clear(folder: Path) -> None:
    if not folder.is_dir():
        raise LocalFileError(f"{folder} is no folder; choose another with --out")
    marked = (folder / MARKER).is_file() and not folder.is_symlink()
    if not marked and any(folder.iterdir()):
        raise LocalFileError(
            f"{folder} was not made by an earlier demo, so it is left alone; choose another with --out"
        )
    _await_server(folder / "state")
    for path in folder.iterdir():
        if path.name == MARKER:
            continue  # until the end: a clearing that is interrupted can be taken up again
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _await_server(state: Path) -> None:
    """Wait until no server owns the state folder: the last demo's lingers for a moment."""
    lock = state / "lock"
    ends = time.monotonic() + _WAIT_SECONDS
    while lock.exists() and _is_held(lock):
        if time.monotonic() > ends:
            raise StateFolderBusyError(f"a server still uses {state}; stop it and try again")
        time.sleep(0.2)


def _is_held(lock: Path) -> bool:
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
