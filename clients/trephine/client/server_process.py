"""Finding the state folder's server, or starting one that ends with its last client (DESIGN 5.12).

Start-up is serialised by a lock on `start.lock`: two commands at once share one server.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from platformdirs import user_state_path
from pydantic import BaseModel, ValidationError

from trephine.client.calls import Calls
from trephine.client.endpoint import OPTIONS
from trephine.client.errors import ServerStartError, ServiceMissingError, TrephineError
from trephine.client.leases import Lease

START_SECONDS = 120.0
"""A cold start on a slow disk imports the service's dependencies; a minute is not unheard of."""
PROBE_SECONDS = 5.0
"""How long a server that is named may take to say that it serves."""
LOG_TAIL_BYTES = 2_000
FULL_BYTES = 1 << 20
"""With less room than this a state folder cannot be begun."""
_NEEDED = ("dbos", "torch", "transformers", "pydantic_settings")


class ServerFile(BaseModel):
    """`server.json`: where the state folder's server listens."""

    address: str
    lease: str
    pid: int
    version: str


class LocalServer:
    """A running server of this machine, kept alive by this client's lease."""

    def __init__(self, address: str, lease: Lease) -> None:
        self.address = address
        self.lease = lease


def default_state() -> Path:
    """`$TREPHINE_STATE`, or the user's own state folder."""
    given = os.environ.get("TREPHINE_STATE")
    return Path(given) if given else user_state_path("trephine")


def find_or_start(state: Path, model_roots: Sequence[Path] = ()) -> LocalServer:
    """Share the state folder's server, or start one.

    Raises:
        ServiceMissingError: If none runs and the service is not installed here.
        ServerStartError: If it does not come up; the message holds the end of its log.
    """
    with _start_lock(state):
        server = _running(state) or _start(state)
    for root in model_roots:
        server.lease.add_root(root)
    return server


def require_service() -> None:
    """Say what to install where the service's own code cannot run.

    Raises:
        ServiceMissingError: If a dependency of the service is absent.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ServiceMissingError(
            f"this needs the service, which is not installed here ({', '.join(missing)} missing): "
            "pip install 'trephine[service]', or name a running server with --server HOST:PORT"
        )


@contextmanager
def _start_lock(state: Path) -> Iterator[None]:
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = (state / "start.lock").open("w")
    except OSError as failure:
        raise _unusable(state, failure) from failure
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _unusable(state: Path, failure: OSError) -> ServerStartError:
    reason = failure.strerror
    if state.exists() and not state.is_dir():
        reason = "it is a file"
    return ServerStartError(f"cannot use {state} as state folder: {reason}; choose another one with --state")


def _running(state: Path) -> LocalServer | None:
    """The server that `server.json` names, if it answers and has taken our lease."""
    found = _server_file(state)
    if found is None:
        return None
    try:
        lease = Lease(found.lease)
    except OSError:
        return None  # a file that a killed server left behind
    if _serves(found.address):
        return LocalServer(found.address, lease)
    lease.release()
    return None


def _server_file(state: Path) -> ServerFile | None:
    try:
        return ServerFile.model_validate_json((state / "server.json").read_bytes())
    except (OSError, ValidationError):
        return None  # absent, or half of an older release's: starting anew writes a good one


def _serves(address: str) -> bool:
    """Whether a healthy server answers. Ctrl-C ends the wait at once."""
    request = health_pb2.HealthCheckRequest()
    with Calls(grpc.insecure_channel(address, options=OPTIONS)) as calls:
        check = health_pb2_grpc.HealthStub(calls.channel).Check
        try:
            answer = calls.ask(check, request, timeout=PROBE_SECONDS, wait_for_ready=True)
        except TrephineError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _start(state: Path) -> LocalServer:
    require_service()
    log = state / "server.log"
    command = [sys.executable, "-m", "trephine.server", "serve", "--state", str(state), "--ephemeral"]
    try:
        output = log.open("ab")
    except OSError as failure:
        raise _unusable(state, failure) from failure
    with output:
        begin = output.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C in this terminal is for this command, not for the server
        )
    return _await(state, process, log, begin)


def _await(state: Path, process: subprocess.Popen[bytes], log: Path, begin: int) -> LocalServer:
    ends = time.monotonic() + START_SECONDS
    while time.monotonic() < ends:
        ended = process.poll()
        # Whose server it is does not matter: `trephine serve` may have taken the folder a moment before ours,
        # which then ends.
        server = _running(state)
        if server is not None:
            return server
        if ended is not None:
            raise ServerStartError(
                f"the local server ended with {ended} while it started:\n{_tail(log, begin)}"
            )
        time.sleep(0.05)
    process.kill()
    process.wait()
    raise ServerStartError(f"no server after {START_SECONDS:.0f} s:\n{_tail(log, begin)}")


def _tail(log: Path, begin: int) -> str:
    with log.open("rb") as file:
        file.seek(begin)
        text = file.read()
    if not text and shutil.disk_usage(log.parent).free < FULL_BYTES:
        return f"no room is left on the disk of {log.parent}"  # not for its log either
    return text[-LOG_TAIL_BYTES:].decode("utf-8", "replace") or f"(nothing in {log})"
