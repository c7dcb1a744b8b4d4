"""Leases and start-up of local servers, without the service."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from grpc_health.v1 import health_pb2_grpc

from trephine.client import connect, server_process
from trephine.client.endpoint import parse_endpoint
from trephine.client.errors import (
    InvalidRequestError,
    PathDeniedError,
    ServerStartError,
    ServerUnreachableError,
)
from trephine.client.leases import Lease
from trephine.client.server_process import find_or_start


class LeaseServer(Thread):
    """Answers `ok` to every line but those that name `/denied`, and remembers them."""

    def __init__(self, path: str) -> None:
        super().__init__(daemon=True)
        self.lines: list[str] = []
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(path)
        self.socket.listen()

    def run(self) -> None:
        connection, _ = self.socket.accept()
        with connection, connection.makefile("rw") as file:
            for line in file:
                if line.strip() == "detach":
                    return
                self.lines.append(line.strip())
                file.write("error not allowed\n" if "denied" in line else "ok\n")
                file.flush()


@pytest.fixture
def lease_server() -> Iterator[tuple[LeaseServer, str]]:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/lease.sock"
        server = LeaseServer(path)
        server.start()
        yield server, path


def test_roots_are_said_once_and_answered(lease_server: tuple[LeaseServer, str], tmp_path: Path):
    """A root is announced once as an absolute path; a refusal is a typed error."""
    server, path = lease_server
    lease = Lease(path)
    lease.add_root(tmp_path)
    lease.add_root(tmp_path)
    (tmp_path / "denied").mkdir()
    with pytest.raises(PathDeniedError, match="not allowed"):
        lease.add_root(tmp_path / "denied")
    with pytest.raises(InvalidRequestError):
        lease.add_root(tmp_path / "two\nlines")
    assert server.lines == [f"root {tmp_path.resolve()}", f"root {tmp_path.resolve() / 'denied'}"]
    lease.release()


def test_a_lease_that_broke_is_noticed(lease_server: tuple[LeaseServer, str]):
    """The server's end is an error of ours, not a hang."""
    _, path = lease_server
    lease = Lease(path)
    with pytest.raises(ServerUnreachableError):
        lease.detach()
    lease.release()


def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> None:
    """Let `python -m trephine.server` be a script of the test's."""
    script = tmp_path / "interpreter"
    script.write_text(f"#!{sys.executable}\n{code}\n")
    script.chmod(0o755)
    monkeypatch.setattr(server_process, "_NEEDED", ())
    monkeypatch.setattr(sys, "executable", str(script))


def test_a_server_that_dies_while_it_starts_shows_its_log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The error holds the end of the log, not a time-out."""
    stand_in(monkeypatch, tmp_path, "import sys; sys.exit('the disk is on fire')")
    with pytest.raises(ServerStartError, match="the disk is on fire"):
        find_or_start(tmp_path / "state")


def test_a_server_that_took_the_folder_first_is_the_one_that_is_used(
    lease_server: tuple[LeaseServer, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """`trephine serve` was starting already: ours ends, since the folder is taken."""
    _, path = lease_server
    address = f"unix:{tmp_path}/other.sock"
    other = json.dumps({"address": address, "lease": path, "pid": 1, "version": "0"})
    state = tmp_path / "state"
    written = f"pathlib.Path({str(state)!r}, 'server.json').write_text({other!r})"
    code = f"import pathlib, sys; {written}; sys.exit(1)"
    stand_in(monkeypatch, tmp_path, code)
    monkeypatch.setattr(server_process, "_serves", address.__eq__)
    server = find_or_start(state)
    server.lease.release()
    assert server.address == address


@pytest.mark.parametrize("place", ["start.lock", "server.log"])
def test_a_state_folder_that_cannot_be_written_to_is_said_to_be_that(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """A read-only disk, for one; also where the folder itself is there already."""
    stand_in(monkeypatch, tmp_path, "import sys; sys.exit('not reached')")
    (tmp_path / "state" / place).mkdir(parents=True)
    with pytest.raises(ServerStartError, match=r"cannot use .*state as state folder: Is a directory; choose"):
        find_or_start(tmp_path / "state")


def test_a_file_is_no_state_folder(tmp_path: Path):
    """It is named as what it is, not as existing."""
    (tmp_path / "state").write_text("")
    with pytest.raises(ServerStartError, match="state as state folder: it is a file; choose"):
        find_or_start(tmp_path / "state")


def test_a_server_that_had_no_room_for_its_log_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The disk is full: the log says nothing, so we do."""
    stand_in(monkeypatch, tmp_path, "import sys; sys.exit(1)")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(ServerStartError, match=r"no room is left on the disk of .*state"):
        find_or_start(tmp_path / "state")


@pytest.mark.parametrize(
    "left_behind",
    [
        "half a fil",
        "{}",
        json.dumps({"address": "unix:/nowhere/a.sock", "lease": "/nowhere/l.sock", "pid": 1, "version": "0"}),
    ],
)
def test_what_a_killed_server_left_is_not_trusted(
    left_behind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """A stale or torn server.json leads to a fresh start."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "server.json").write_text(left_behind)
    stand_in(monkeypatch, tmp_path, "import sys; sys.exit(' '.join(sys.argv[1:]))")
    with pytest.raises(ServerStartError, match=r"-m trephine\.server serve .*--ephemeral"):
        find_or_start(tmp_path / "state")


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("unix:/run/x.sock", True),
        ("127.0.0.1:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("127.9.9.9:1", True),
        ("10.0.0.1:1", False),
        ("example.org:1", False),
        ("localhost.example.org:1", False),
    ],
)
def test_only_this_machine_goes_without_tls(address: str, local: bool):
    """Every address that leaves the machine gets TLS credentials."""
    endpoint = parse_endpoint(address, token=None, root_certificates=None)
    assert endpoint.is_local is local
    assert (endpoint.credentials() is None) is local


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:port"])
def test_addresses_are_checked(address: str):
    """Something that is no address is refused with the two forms that are."""
    with pytest.raises(InvalidRequestError, match="HOST:PORT"):
        parse_endpoint(address, token=None, root_certificates=None)


def test_ctrl_c_ends_the_probe_and_cannot_interrupt_grpc_as_it_starts_the_call(
    lease_server: tuple[LeaseServer, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """The named server accepts and never answers. Its call is started where no signal arrives."""
    starters: list[threading.Thread] = []

    class Stub(health_pb2_grpc.HealthStub):
        def __init__(self, channel: Any) -> None:
            super().__init__(channel)
            start, self.Check = self.Check.future, self  # a blocking call of `Check` is a TypeError
            self.future = lambda *given, **options: (
                starters.append(threading.current_thread()) or start(*given, **options)
            )

    monkeypatch.setattr(health_pb2_grpc, "HealthStub", Stub)
    monkeypatch.setattr(server_process, "PROBE_SECONDS", 600.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:

        def press() -> None:
            silent.accept()
            os.kill(os.getpid(), signal.SIGINT)

        Thread(target=press, daemon=True).start()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        named = {"address": address, "lease": lease_server[1], "pid": 1, "version": "0"}
        (tmp_path / "server.json").write_text(json.dumps(named))
        with pytest.raises(KeyboardInterrupt):
            find_or_start(tmp_path)
    assert [thread is threading.main_thread() for thread in starters] == [False]


@pytest.mark.parametrize("state", ["", "  "])
def test_an_empty_state_names_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str):
    """The current folder would become one without a word."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequestError, match="state is empty and names no folder"):
        connect(state=state)
    assert not list(tmp_path.iterdir())
