"""The command line as processes: sharing a server, being interrupted, being killed."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.e2e.servers import wait_for, words_of
from trephine.client import connect

pytestmark = pytest.mark.e2e

PROMPT = "When Mary and John went to the store, John gave a drink to"
WORDS = (sys.executable, "-m", "trephine.client")


def start(state: Path, *words: str) -> subprocess.Popen[str]:
    """A command in its own process."""
    return subprocess.Popen(
        [*WORDS, "--state", str(state), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str], *, seconds: float = 280) -> tuple[int, str, str]:
    """Its exit status, results and the rest."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def processes_of(state: Path) -> list[psutil.Process]:
    """Every process that was started for this state folder, and what those started."""
    servers = [
        one
        for one in psutil.process_iter(["cmdline"])
        if "trephine.server" in (one.info["cmdline"] or []) and str(state) in one.info["cmdline"]
    ]
    found = list(servers)
    for server in servers:
        with suppress(psutil.NoSuchProcess):  # it may end while it is looked at
            found += server.children(recursive=True)
    return found


def opened_by(process: subprocess.Popen[str]) -> set[str]:
    """The files that it has open."""
    return {file.path for file in psutil.Process(process.pid).open_files()}


def starts_of(state: Path) -> int:
    """How many servers have served this state folder."""
    return (state / "server.log").read_text().count('"event": "serving"')


def test_two_commands_at_once_share_one_server(tmp_path: Path):
    """Both succeed, one server served them, and it ends after the last."""
    with (tmp_path / "start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # neither goes on before both are there
        commands = [start(tmp_path, "--json", "models", "list") for _ in range(2)]
        wait_for(lambda: all(lock.name in opened_by(command) for command in commands))
    ended = [finish(command) for command in commands]
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert ended[0][1] == ended[1][1]
    assert starts_of(tmp_path) == 1
    wait_for(lambda: not processes_of(tmp_path))


@pytest.mark.real
def test_killing_a_command_leaves_no_process(smollm2: Path, tmp_path: Path):
    """Kill -9 in the middle of work: server and engine go by themselves."""
    command = start(tmp_path, "discover", PROMPT, "--target", " Mary")
    wait_for(lambda: any("trephine.engine" in words_of(one) for one in processes_of(tmp_path)), seconds=120)
    command.send_signal(signal.SIGKILL)
    command.communicate()
    wait_for(lambda: not processes_of(tmp_path), seconds=60)


@pytest.mark.real
def test_ctrl_c_cancels_and_the_operation_says_so(smollm2: Path, tmp_path: Path):
    """SIGINT during a discovery: status 130, and the stored operation is cancelled, not resumed."""
    with connect(state=tmp_path) as trephine:
        trephine.load_model("smollm2")
        command = start(tmp_path, "discover", PROMPT, "--target", " Mary")
        assert command.stderr is not None
        assert next(line for line in command.stderr if line.startswith("discover: "))
        command.send_signal(signal.SIGINT)
        code, out, err = finish(command)
        assert (code, out) == (130, ""), err
        [operation] = [one for one in trephine.operations.list() if one.metadata.method == "DiscoverCircuit"]
        assert operation.metadata.state == "cancelled"


@pytest.mark.real
def test_detached_work_is_finished_without_its_command(smollm2: Path, tmp_path: Path):
    """`--detach` prints the name at once; the server stays until the work is done; the result is there.

    The first server is killed: whoever looks once starts another, which stays as well.
    """
    words = ("discover", PROMPT, "--target", " Mary", "--nodes", "8", "--detach")
    code, name, err = finish(start(tmp_path, *words))
    assert code == 0, err
    os.kill(json.loads((tmp_path / "server.json").read_text())["pid"], signal.SIGKILL)
    code, out, err = finish(start(tmp_path, "--json", "operations", "show", name.strip()))
    assert code == 0, err
    assert json.loads(out)["metadata"]["state"] in ("queued", "running")
    wait_for(lambda: not processes_of(tmp_path), seconds=200)
    code, out, err = finish(start(tmp_path, "--json", "operations", "show", name.strip()))
    assert code == 0, err
    assert json.loads(out)["metadata"]["state"] == "succeeded"


@pytest.mark.real
def test_a_folder_is_opened_by_its_path(smollm2: Path, tmp_path: Path):
    """`--model FOLDER` needs no root to be configured: the command announces it to its own server."""
    folder = tmp_path / "somewhere" / "my-model"
    folder.mkdir(parents=True)
    for file in smollm2.iterdir():
        os.link(file, folder / file.name)
    words = ("generate", "The capital of France is", "--model", str(folder), "--max-new-tokens", "1")
    code, out, err = finish(start(tmp_path / "state", *words))
    assert (code, out) == (0, " Paris\n"), err
