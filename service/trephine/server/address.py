"""Where a server is found: `server.json` in the state folder, sockets in a private temporary folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from pydantic import BaseModel, ValidationError

from trephine.domain.errors import InvalidRequestError

SERVER_FILE = "server.json"
_PREFIX = "trephine-"
_LONGEST_SOCKET_PATH = 100
"""The kernel allows 107 bytes; gRPC's own prefix and the file's name need some of them."""


class ServerFile(BaseModel):
    """How a state folder's server is reached."""

    address: str
    """`unix:/.../trephine.sock`."""
    lease: str
    """`/.../lease.sock`."""
    pid: int
    version: str
    listen: str | None = None
    """`HOST:PORT` that is served beside, with the port that was taken."""


class SocketFolder:
    """A fresh folder that only this user can enter."""

    def __init__(self) -> None:
        self.path = _fresh_folder()
        self.grpc = self.path / "trephine.sock"
        self.lease = self.path / "lease.sock"

    def remove(self) -> None:
        """Remove the folder and its sockets."""
        shutil.rmtree(self.path, ignore_errors=True)


def publish(state: Path, server: ServerFile) -> None:
    """Write `server.json`, readable by its owner only, by one rename."""
    temporary = state / f".{SERVER_FILE}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(server.model_dump_json(indent=2) + "\n")
    temporary.rename(state / SERVER_FILE)


def find(state: Path) -> ServerFile | None:
    """Read `server.json`; None if there is none, or none of this release."""
    try:
        return ServerFile.model_validate_json((state / SERVER_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def withdraw(state: Path) -> None:
    """Remove `server.json`, so that nobody finds this server any more."""
    (state / SERVER_FILE).unlink(missing_ok=True)


def sweep(state: Path) -> None:
    """Remove what a killed server left. Only for the owner of the state folder's lock."""
    left = find(state)
    withdraw(state)
    if left is None:
        return
    folder = Path(left.lease).parent
    if folder.name.startswith(_PREFIX) and folder.is_dir() and folder.stat().st_uid == os.getuid():
        shutil.rmtree(folder, ignore_errors=True)


def _fresh_folder() -> Path:
    places = [os.environ.get("XDG_RUNTIME_DIR") or "", tempfile.gettempdir(), "/tmp"]  # noqa: S108
    for place in places:
        if place and os.access(place, os.W_OK) and len(os.fsencode(place)) < _LONGEST_SOCKET_PATH - 40:
            return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    raise InvalidRequestError(
        "no temporary folder has a path short enough for a Unix socket; set TMPDIR to a shorter one"
    )
