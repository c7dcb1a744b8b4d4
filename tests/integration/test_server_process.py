"""The server as a process: its life, its locks, its leases, and what it never imports."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

pytestmark = pytest.mark.integration
GUARD = 60.0


def command(state: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "trephine.server", "serve", "--state", str(state), *flags]


@contextmanager
def started(state: Path, *flags: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server process that is serving; killed at the end if it still lives."""
    log = state.parent / "log"
    with log.open("ab") as stderr:
        environment = {**os.environ, "TREPHINE_CACHE": str(state.parent / "cache")}
        process = subprocess.Popen(command(state, *flags), stderr=stderr, env=environment)
    try:
        until(lambda: ready(state, process.pid) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        process.kill()
        process.wait()


def ready(state: Path, pid: int) -> bool:
    try:
        return bool(json.loads((state / "server.json").read_text())["pid"] == pid)
    except (OSError, ValueError):
        return False


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + GUARD
    while not condition():
        assert time.monotonic() < ends, "it never came true"
        time.sleep(0.05)


def server_file(state: Path) -> dict[str, str]:
    return json.loads((state / "server.json").read_text())


def lease(state: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(server_file(state)["lease"])
    return connection


def health(address: str) -> int:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=GUARD).status)


def test_serves_until_sigterm_and_leaves_nothing(tmp_path):
    """SIGTERM: exit code 0, server.json and sockets gone, the folder free for the next server."""
    state = tmp_path / "state"
    with started(state) as process:
        found = server_file(state)
        assert health(found["address"]) == health_pb2.HealthCheckResponse.SERVING
        assert (state / "server.json").stat().st_mode & 0o777 == 0o600
        probe = [sys.executable, "-m", "trephine.server", "health", "--state", str(state)]
        assert subprocess.run(probe, check=False).returncode == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(GUARD) == 0
    assert not (state / "server.json").exists()
    assert not Path(found["lease"]).parent.exists()
    assert subprocess.run(probe, check=False).returncode == 1


def test_logs_are_json_lines(tmp_path):
    """Off a terminal every line of the log is one JSON object."""
    state = tmp_path / "state"
    with started(state) as process:
        health(server_file(state)["address"])
        process.send_signal(signal.SIGINT)
        process.wait(GUARD)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {"serving", "draining", "ended"} <= {line["event"] for line in lines}


def test_one_server_owns_a_state_folder(tmp_path):
    """A second server on the same folder is refused at once and says who owns it."""
    state = tmp_path / "state"
    with started(state) as process:
        second = subprocess.run(command(state), capture_output=True, text=True, timeout=GUARD, check=False)
        assert second.returncode == 1
        assert "STATE_FOLDER_BUSY" in second.stderr
        assert str(process.pid) in second.stderr
        assert process.poll() is None
        assert ready(state, process.pid)


def test_a_killed_server_is_replaced(tmp_path):
    """After kill -9 the lock is free, the old sockets are swept, the next server serves."""
    state = tmp_path / "state"
    with started(state) as process:
        old = server_file(state)
        process.kill()
        process.wait()
    with started(state):
        assert server_file(state)["address"] != old["address"]
        assert not Path(old["lease"]).parent.exists()
        assert health(server_file(state)["address"]) == health_pb2.HealthCheckResponse.SERVING


def test_an_ephemeral_server_ends_with_its_last_client(tmp_path):
    """It lives while a lease is open and ends a moment after the last one, with exit code 0."""
    state = tmp_path / "state"
    with started(state, "--ephemeral") as process:
        held = lease(state)
        time.sleep(3)
        assert process.poll() is None
        held.close()
        assert process.wait(GUARD) == 0
    assert not (state / "server.json").exists()


def test_a_killed_client_leaves_no_process(tmp_path):
    """Kill -9 of the only client ends the server and everything it started."""
    state = tmp_path / "state"
    with started(state, "--ephemeral") as process:
        code = (
            "import json, socket, sys, time\n"
            "s = socket.socket(socket.AF_UNIX)\n"
            "s.connect(json.load(open(sys.argv[1]))['lease'])\n"
            "print('held', flush=True)\n"
            "time.sleep(600)\n"
        )
        client = subprocess.Popen(
            [sys.executable, "-c", code, str(state / "server.json")], stdout=subprocess.PIPE
        )
        assert client.stdout is not None
        assert client.stdout.readline() == b"held\n"
        children = psutil.Process(process.pid).children(recursive=True)
        client.kill()
        client.wait()
        assert process.wait(GUARD) == 0
    assert not [child for child in children if child.is_running()]


def test_the_successor_waits_for_a_draining_server(tmp_path):
    """A server that starts while its predecessor is still closing takes over instead of failing."""
    state = tmp_path / "state"
    with started(state) as first:
        first.send_signal(signal.SIGTERM)
        until(lambda: not (state / "server.json").exists())
        with started(state) as second:
            assert first.wait(GUARD) == 0
            assert ready(state, second.pid)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--listen", "0.0.0.0:0", "--token-file", "t"], "insecure_listen"),
        (["--tls-cert", "c.pem"], "go together"),
        (["--config", "absent.toml"], "absent.toml"),
    ],
)
def test_bad_settings_are_usage_errors(tmp_path, flags: list[str], says: str):
    """Exit code 2, one line that names the setting, nothing started."""
    done = subprocess.run(
        command(tmp_path / "state", *flags),
        capture_output=True,
        text=True,
        timeout=GUARD,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "state" / "server.json").exists()


def test_the_front_never_imports_torch():
    """Everything that a server imports, imported: neither torch nor transformers is among it."""
    code = (
        "import sys, trephine.server.serving, trephine.server.__main__\n"
        "bad = [m for m in ('torch', 'transformers', 'safetensors.torch') if m in sys.modules]\n"
        "sys.exit(f'imported: {bad}' if bad else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_running_server_holds_no_torch(tmp_path):
    """A serving process has not mapped libtorch."""
    state = tmp_path / "state"
    with started(state) as process:
        maps = Path(f"/proc/{process.pid}/maps").read_text()
    assert "libtorch" not in maps
    assert "cygrpc" in maps


def test_doctor_tells_versions_and_room(tmp_path):
    """Doctor prints machine-readable facts and succeeds where the service is installed."""
    command = [sys.executable, "-m", "trephine.server", "doctor", "--json", "--state", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, check=False)
    facts = json.loads(done.stdout)
    assert done.returncode == 0
    assert facts["state"].startswith(f"{tmp_path} (")
    assert facts["extras"]["service"] == "present"
    assert facts["packages"]["trephine"] != "absent"
    assert facts["memory_free_mib"] > 0
