"""Kill -9 of an engine or a server in the middle of long work: nothing is lost, nothing appears twice."""

from __future__ import annotations

from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.builders import tiny_folder
from tests.e2e.servers import engine_processes, kill, own_server, server_process, wait_for
from trephine.client import Model, Operation, Trephine, connect, feature
from trephine.client.verification import verify_folder

pytestmark = [pytest.mark.e2e, pytest.mark.real]

PROMPT = "When Mary and John went to the store, John gave a drink to"


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder for the tests of discoveries: a server that still lingers there serves the next one."""
    return tmp_path_factory.mktemp("state")


def slow_discovery(model: Model, verify_nodes: int = 64) -> Operation[object]:
    """A discovery that takes seconds, brought to where it works."""
    operation = model.start_discover(
        PROMPT, target=" Mary", against=" John", max_feature_nodes=192, verify_nodes=verify_nodes
    )
    _underway(operation)
    return operation


def _underway(operation: Operation[object]) -> None:
    for update in operation.watch(timeout_seconds=120):
        if update.metadata.progress.done > 0:
            return
    pytest.fail(f"{operation.name} ended before it could be disturbed")


def circuits_of(trephine: Trephine) -> int:
    return len(trephine.circuits.list())


def test_health_answers_during_a_discovery(smollm2: Path, state: Path):
    """The front is never blocked by an engine: health answers within the guard, many times over."""
    with own_server(state) as trephine:
        operation = slow_discovery(trephine.load_model("smollm2"), verify_nodes=192)
        address = trephine._wire.endpoint.address
        with grpc.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for _ in range(50):
                answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert not operation.refresh().is_final
        operation.cancel()


def test_a_discovery_survives_the_death_of_its_engine(smollm2: Path, state: Path):
    """The operation is started again on a fresh engine and ends with exactly one circuit."""
    with own_server(state) as trephine:
        before = circuits_of(trephine)
        operation = slow_discovery(trephine.load_model("smollm2"))
        [engine] = engine_processes(state)
        kill(engine)
        operation.result(timeout_seconds=240)
        assert operation.refresh().attempts >= 2
        assert circuits_of(trephine) == before + 1


def test_a_discovery_survives_the_death_of_the_server(smollm2: Path, state: Path):
    """The next server resumes it and finds what an undisturbed one finds; the dead one's engine is gone."""
    with own_server(state) as trephine:
        before = circuits_of(trephine)
        operation = slow_discovery(trephine.load_model("smollm2"))
        name = operation.name
        [engine] = engine_processes(state)
        kill(server_process(state))
        wait_for(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE)
    with connect(state=state) as trephine:
        resumed = trephine.operations.get(name)
        circuit = resumed.result(timeout_seconds=240)
        assert resumed.refresh().attempts == 2
        assert circuits_of(trephine) == before + 1
        others = [one for one in trephine.circuits.list() if one.name != circuit.name]
        undisturbed = (
            others[0]
            if others
            else slow_discovery(trephine.load_model("smollm2")).result(timeout_seconds=240)
        )
        assert circuit.nodes() == undisturbed.nodes()
        assert circuit.edges() == undisturbed.edges()


@pytest.fixture
def tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small model in a model cache of its own; its certification still takes seconds."""
    monkeypatch.setenv("TREPHINE_CACHE", str(tmp_path / "cache"))
    tiny_folder("llama", tmp_path / "cache" / "models" / "tiny")
    return "tiny"


@pytest.mark.parametrize("victim", ["engine", "server"])
def test_an_export_survives_a_death_without_a_partial_folder(victim: str, tiny_model: str, tmp_path: Path):
    """Killed while it builds, it leaves no visible folder; resumed, it publishes one that verifies."""
    state = tmp_path / "state"
    with own_server(state) as trephine:
        model = trephine.load_model(tiny_model)
        edit = trephine.edits.create("cut", [feature(1, 7).ablate()], model=model.name)
        operation = trephine.exports.start(edit, "cut")
        _underway(operation)
        kill(engine_processes(state)[0] if victim == "engine" else server_process(state))
        if victim == "engine":
            operation.result(timeout_seconds=280)
        name = operation.name
    with connect(state=state) as trephine:
        resumed = trephine.operations.get(name)
        export = resumed.result(timeout_seconds=280)
        assert resumed.refresh().attempts >= 2
        folder = trephine.exports.download(export, tmp_path / "home")
        leftovers = [path for path in state.rglob(".trephine-tmp-*") if path.is_dir()]
    assert verify_folder(folder).passed
    assert leftovers == []
