"""The durable job store across lives of the server, killed with signal 9 (DESIGN 5.11)."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.unit.app.house import discover_command, house, small_circuit
from trephine.app.jobs.jobs import APPLICATION_VERSION, Jobs
from trephine.app.jobs.requests import DiscoverRequest
from trephine.domain.errors import CorruptRecordError
from trephine.domain.operations import OperationState

pytestmark = pytest.mark.integration

REPOSITORY = Path(__file__).parents[2]
GUARD = 120.0


def begin(root: Path, *do: str) -> subprocess.Popen[str]:
    """Start a life."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.integration.jobs_life", str(root), *do],
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def live(root: Path, do: str) -> list[dict[str, Any]]:
    """Live to the end; return what was said."""
    process = begin(root, do)
    try:
        output, _ = process.communicate(timeout=GUARD)
    finally:
        process.kill()
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> tuple[Path, str]:
    """The folder of a server that was killed once its operation reported progress; the operation's id."""
    root = tmp_path_factory.mktemp("killed")
    [identifier] = hang_and_die(root, 1)
    return root, identifier


def hang_and_die(root: Path, count: int) -> list[str]:
    """Kill a life once each of its operations has reported progress; return their ids."""
    process = begin(root, "hang", str(count))
    try:
        assert process.stdout is not None
        said = islice((line for line in process.stdout if '"progress"' in line), count)
        return [json.loads(line)["progress"] for line in said]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture
def corpse(killed, tmp_path) -> str:
    """A copy of that folder in `tmp_path`; the operation's id."""
    shutil.copytree(killed[0], tmp_path, dirs_exist_ok=True)
    identifier: str = killed[1]
    return identifier


def rows(root: Path, query: str, *arguments: Any) -> list[Any]:
    """Ask the job store's file."""
    with sqlite3.connect(root / "jobs.sqlite") as connection:
        return connection.execute(query, arguments).fetchall()


def published(root: Path) -> list[str]:
    """Folders of circuits, temporary ones included."""
    return sorted(path.name for path in (root / "state" / "circuits").iterdir())


def test_killed_operation_is_resumed_and_publishes_once(tmp_path, corpse):
    """Kill -9 in the middle: the next life finishes it, in two attempts, with one result."""
    assert published(tmp_path) == []
    (ended,) = live(tmp_path, "resume")
    assert ended == {
        "id": corpse,
        "state": "succeeded",
        "attempts": 2,
        "result": f"circuits/{corpse}",
        "failure": None,
    }
    assert published(tmp_path) == [corpse]
    (again,) = live(tmp_path, "resume")
    assert again == ended
    assert published(tmp_path) == [corpse]


def test_death_between_publishing_and_recording_does_no_work_twice(tmp_path):
    """The result is there, the record is not: the next life adopts it and asks no engine."""
    process = begin(tmp_path, "crash")
    assert process.wait(timeout=GUARD) == 9
    (folder,) = published(tmp_path)
    before = (tmp_path / "state" / "circuits" / folder / "circuit.json").stat().st_mtime_ns
    (ended,) = live(tmp_path, "resume")
    assert (ended["state"], ended["attempts"]) == ("succeeded", 2)
    assert (tmp_path / "asked").read_text() == "x"
    assert (tmp_path / "state" / "circuits" / folder / "circuit.json").stat().st_mtime_ns == before


def test_job_outlives_an_upgrade_of_the_code(tmp_path, corpse):
    """The version in the store is fixed, not a hash of the source: other code resumes the job."""
    assert rows(tmp_path, "SELECT application_version, serialization FROM workflow_status") == [
        (APPLICATION_VERSION, "portable_json")
    ]
    upgraded = (
        "import sys, runpy, trephine.app.jobs.jobs as jobs\n"
        "original = jobs._Bridge.call\n"
        "def call(self, operation_id):\n"
        "    'A body that an earlier version had not.'\n"
        "    sys.stderr.write('upgraded')\n"
        "    return original(self, operation_id)\n"
        "jobs._Bridge.call = call\n"
        "runpy.run_module('tests.integration.jobs_life', run_name='__main__', alter_sys=True)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", upgraded, str(tmp_path), "resume"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=GUARD,
        check=True,
    )
    record = next(json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{"))
    assert (record["id"], record["state"], record["attempts"]) == (corpse, "succeeded", 2)
    assert "upgraded" in ended.stderr


class Bomb:
    """Unpickling one leaves a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


PLACES = ("input", "legacy_input", "output", "step", "event", "unlabelled")


@pytest.fixture(scope="module")
def bombed(tmp_path_factory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """A folder with a pickle in each place, each in a job of its own, after its next life; what that said."""
    root = tmp_path_factory.mktemp("bombed")
    jobs = dict(zip(PLACES, hang_and_die(root, len(PLACES)), strict=True))
    for place, identifier in jobs.items():
        bomb = base64.b64encode(pickle.dumps(Bomb(root / f"exploded-{place}"))).decode()
        plant(root, bomb, place, identifier)
    ended = {record["id"]: record for record in live(root, "resume")}
    return root, {place: ended[identifier] for place, identifier in jobs.items()}


@pytest.mark.parametrize("place", PLACES)
def test_pickled_row_is_refused_and_never_opened(bombed, place):
    """Wherever a pickle is put, the operation fails as CORRUPT_RECORD and the pickle does not run."""
    root, ended = bombed
    assert (ended[place]["state"], ended[place]["failure"]) == ("failed", "CORRUPT_RECORD")
    assert not (root / f"exploded-{place}").exists()
    assert rows(root, "SELECT * FROM workflow_status") == []
    assert not (root / "asked").exists()


def plant(root: Path, bomb: str, place: str, identifier: str) -> None:
    """Put a pickle where DBOS would look for an operation's job."""
    label = "UPDATE workflow_status SET serialization = 'py_pickle'"
    step = (
        "INSERT INTO operation_outputs (workflow_uuid, function_id, function_name, output, serialization) "
        "SELECT workflow_uuid, 0, 'step', ?, 'py_pickle' FROM workflow_status"
    )
    event = (
        "INSERT INTO workflow_events (workflow_uuid, key, value, serialization) "
        "SELECT workflow_uuid, 'k', ?, NULL FROM workflow_status"
    )
    statements: dict[str, list[tuple[str, tuple[str, ...]]]] = {
        "input": [(label, ()), ("UPDATE workflow_input SET inputs = ?", (bomb,))],
        "legacy_input": [(label, ()), ("UPDATE workflow_status SET inputs = ?", (bomb,))],
        "output": [
            (
                "UPDATE workflow_status SET serialization = 'py_pickle', status = 'SUCCESS', output = ?",
                (bomb,),
            )
        ],
        "step": [(step, (bomb,))],
        "event": [(event, (bomb,))],
        "unlabelled": [
            ("UPDATE workflow_status SET serialization = NULL", ()),
            ("UPDATE workflow_input SET inputs = ?", (bomb,)),
        ],
    }
    with sqlite3.connect(root / "jobs.sqlite") as connection:
        for statement, arguments in statements[place]:
            connection.execute(f"{statement} WHERE workflow_uuid LIKE ?", (*arguments, f"{identifier}.%"))


def test_foreign_job_without_an_operation_is_dropped(tmp_path, corpse):
    """A row for work that nobody started is removed; a job with another's id as argument is refused."""
    with sqlite3.connect(tmp_path / "jobs.sqlite") as connection:
        names = [row[1] for row in connection.execute("PRAGMA table_info(workflow_status)")]
        rest = ", ".join(name for name in names if name != "workflow_uuid")
        connection.execute(
            f"INSERT INTO workflow_status (workflow_uuid, {rest}) "  # noqa: S608  names of columns
            f"SELECT 'stranger', {rest} FROM workflow_status"
        )
        arguments = json.dumps({"namedArgs": {}, "positionalArgs": [corpse]})
        connection.execute("INSERT INTO workflow_input VALUES ('stranger', ?, 0)", (arguments,))
    (ended,) = live(tmp_path, "resume")
    assert (ended["id"], ended["state"]) == (corpse, "succeeded")
    (left,) = rows(tmp_path, "SELECT workflow_uuid FROM workflow_status")
    assert left[0].startswith(f"{corpse}.")


async def test_store_opens_again_in_one_process(tmp_path):
    """Closing leaves DBOS' global state clean: the next opening resumes what was interrupted."""
    request = DiscoverRequest(model="tiny", command=discover_command())
    first = house(tmp_path, jobs=Jobs.sqlite(tmp_path / "jobs.sqlite", executor_id="one"))
    await first.models.load(first.models.resolve("tiny"), lambda _: None)
    await first.operations.open()
    record = await first.operations.start("DiscoverCircuit", request, request_id="r")
    record = await asyncio.wait_for(first.operations.wait(record.id), GUARD)
    assert record.state is OperationState.SUCCEEDED
    first.operations.delete(record.id)
    again = await first.operations.start("DiscoverCircuit", request, request_id="r")
    again = await asyncio.wait_for(first.operations.wait(again.id), GUARD)
    assert again.state is OperationState.SUCCEEDED
    await first.operations.close()
    second = house(tmp_path, jobs=Jobs.sqlite(tmp_path / "jobs.sqlite", executor_id="one"))
    await second.operations.open()
    assert (await second.circuits.get(again.result)).circuit.prompt == small_circuit().prompt
    await second.operations.close()


async def test_pickle_is_dead_in_this_process(tmp_path):
    """Once the store is open, DBOS' own default serialiser refuses both ways."""
    from dbos._serialization import DBOSDefaultSerializer

    jobs = Jobs.sqlite(tmp_path / "jobs.sqlite", executor_id="one")

    async def run(operation_id: str) -> str:
        return operation_id

    await jobs.open(run=run, unfinished=(), on_refused=lambda *_: None)
    try:
        assert rows(tmp_path, "PRAGMA journal_mode") == [("wal",)]
        for attempt in (DBOSDefaultSerializer.serialize, DBOSDefaultSerializer.deserialize):
            with pytest.raises(CorruptRecordError):
                attempt("gASVBwAAAAAAAABLAS4=")
    finally:
        await jobs.close()
