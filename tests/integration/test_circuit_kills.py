"""Graphs over several sets, and their verification, go on with the next server and end the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.builders import tiny_folder, tiny_hosted
from tests.e2e.servers import kill, server_process
from tests.replacement_sets import write_saes, write_transcoders
from trephine.client import Model, Operation, Trephine, connect
from trephine.domain.sites import SiteKind

pytestmark = pytest.mark.integration
SETS: dict[str, Any] = {"replacement": "tc", "beside": ["attn", "neurons"]}
PROMPT = "When Mary and John went to the store, John gave a drink to"
GRAPH: dict[str, Any] = {"target": " Mary", "against": " John", "max_feature_nodes": 96, **SETS}
CIRCUIT = "6f1c5d0e-3d52-4b8e-9a53-0d8f3a1b2c4d"
"""The request of the circuit that is verified: asked for twice it is found once."""
REPORT: dict[str, Any] = {"nodes": 100, "groups": 4, "depth_nodes": 8, "adversary_steps": 2, "bootstrap": 100}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, and sets of transcoders and of attention's SAEs."""
    folder, hosted = tmp_path_factory.mktemp("roots"), tiny_hosted("llama")
    tiny_folder("llama", folder / "models" / "tiny")
    write_transcoders(hosted, folder / "sets" / "tc", layers=(0, 1))
    write_saes(hosted, folder / "sets" / "attn", kind=SiteKind.ATTN_OUT, layers=(1, 2))
    return folder


@contextmanager
def served(state: Path, roots: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trephine]:
    """A server that loads from these roots."""
    monkeypatch.setenv("TREPHINE_MODEL_ROOTS", str(roots / "models"))
    monkeypatch.setenv("TREPHINE_REPLACEMENT_ROOTS", str(roots / "sets"))
    with connect(state=state) as trephine:
        yield trephine


def opened(trephine: Trephine) -> Model:
    """The model with its sets."""
    model = trephine.load_model("tiny")
    for name in ("tc", "attn"):
        model.load_replacements(name)
    return model


def fell(state: Path) -> None:
    """Kill the server of a state folder and its engines, as a machine that loses power does."""
    server = server_process(state)
    for each in (server, *server.children(recursive=True)):
        kill(each)
    server.wait(30)


def at_work(operation: Operation[Any], stage: str) -> None:
    """Wait until an operation has done a part of a stage."""
    for update in operation.watch():
        progress = update.metadata.progress
        if progress.stage.startswith(stage) and progress.done:
            break
    assert not operation.refresh().is_final, "it ended before it could be killed"


def graph(model: Model) -> Operation[Any]:
    return model.start_discover(PROMPT, verify_nodes=128, **GRAPH)


def told_of_graph(circuit: Any) -> Any:
    return circuit.nodes(), circuit.edges(), circuit.info.sets, circuit.info.quality


def report(model: Model) -> Operation[Any]:
    circuit = model.discover(PROMPT, verify_nodes=0, request_id=CIRCUIT, **GRAPH)
    return circuit.start_verify(**REPORT)


def told_of_report(found: Any) -> Any:
    told = json.loads(found.to_json())
    return {key: told[key] for key in set(told) - {"name", "createTime", "seconds", "peakExtraBytes"}}


@pytest.mark.parametrize(
    ("start", "stage", "told"),
    [(graph, "attribution", told_of_graph), (report, "single", told_of_report)],
    ids=["graph", "verification"],
)
def test_it_outlives_its_server(
    tmp_path: Path,
    roots: Path,
    monkeypatch: pytest.MonkeyPatch,
    start: Callable[[Model], Operation[Any]],
    stage: str,
    told: Callable[[Any], Any],
):
    """Killed in the middle it is found again, goes on with its sets unasked, and ends the same."""
    state = tmp_path / "state"
    with served(state, roots, monkeypatch) as trephine:
        model = opened(trephine)
        expected = told(start(model).result())
        operation = start(model)
        at_work(operation, stage)
        fell(state)
    with served(state, roots, monkeypatch) as trephine:
        again = trephine.operations.get(operation.name)
        assert told(again.result()) == expected
        assert again.refresh().attempts == 2
