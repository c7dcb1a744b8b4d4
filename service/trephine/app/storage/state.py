"""The state folder: what lies where, and that one server owns it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from trephine.app.storage.files import write_whole
from trephine.domain.errors import StateFolderBusyError


class StateFolder:
    """A server's durable memory, locked from `open` until `close` or the end of the process.

    The kernel releases the lock of a killed process, so a crash never needs a person.
    """

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def open(cls, path: Path) -> StateFolder:
        """Create the folder (0700) if need be and take its lock.

        Raises:
            StateFolderBusyError: If another process holds it; the message names its pid.
        """
        path = path.expanduser().resolve()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FileLock(path / "lock", mode=0o600)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            pid = _owner(path)
            raise StateFolderBusyError(
                f"the state folder {path} belongs to the server with pid {pid or 'unknown'}; "
                "use that server, stop it, or choose another folder",
                pid=pid,
            ) from None
        write_whole(path / "owner.json", json.dumps({"pid": os.getpid()}).encode())
        return cls(path, lock)

    def folder(self, name: str) -> Path:
        """Return a sub folder, created 0700 if need be."""
        folder = self.path / name
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    @property
    def jobs_database(self) -> Path:
        """The SQLite file of the job store."""
        return self.path / "jobs.sqlite"

    @property
    def default_export_root(self) -> Path:
        """Where exports are published unless another root is configured."""
        return self.folder("published")

    def executor_id(self) -> str:
        """Return the identity of this folder's server, made once and kept (DESIGN 5.11)."""
        file = self.path / "executor_id"
        if not file.exists():
            write_whole(file, uuid4().hex.encode())
        return file.read_text(encoding="ascii").strip()

    def close(self) -> None:
        """Release the lock."""
        (self.path / "owner.json").unlink(missing_ok=True)
        self._lock.release()


def _owner(path: Path) -> int:
    """Pid of the lock's holder, 0 if it has not written it yet."""
    try:
        return int(json.loads((path / "owner.json").read_text(encoding="utf-8"))["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
