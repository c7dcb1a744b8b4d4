"""Circuits of every kind outlive their server and their engine, end the same, and are never seen in part."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.builders import tiny_folder, tiny_hosted
from tests.dataset_examples import examples
from tests.e2e.servers import engine_processes, kill, server_process
from tests.global_texts import texts
from tests.replacement_sets import write_saes, write_transcoders
from trephine.client import Model, Operation, Trephine, connect
from trephine.client.types import DatasetExample
from trephine.domain.sites import SiteKind

pytestmark = pytest.mark.integration
SETS: dict[str, Any] = {"replacement": "tc", "beside": ["attn", "neurons"]}
PROMPT = "When Mary and John went to the store, John gave a drink to"
GRAPH: dict[str, Any] = {"target": " Mary", "against": " John", "max_feature_nodes": 96, **SETS}
CIRCUIT = "6f1c5d0e-3d52-4b8e-9a53-0d8f3a1b2c4d"
"""The request of the circuit that is verified: asked for twice it is found once."""
ROWS = [
    DatasetExample(clean=one.clean, corrupted=one.corrupted, answers=one.answers, wrong=one.wrong)
    for one in examples(64)
]
BEHAVIOUR: dict[str, Any] = {
    "replacement": "tc", "nodes": 12, "edge_nodes": 4, "random_circuits": 40, "bootstrap": 50,
    "estimator": "integrated_gradients", "steps": 20, "stability_draws": 4,
}  # fmt: skip
TEXTS = texts(160, words=60)
GLOBAL: dict[str, Any] = {
    "replacement": "all", "max_nodes": 24, "max_tokens": 4, "max_logits": 4, "candidates": 96,
    "verify_edges": 96, "bootstrap": 50,
}  # fmt: skip
REPORT: dict[str, Any] = {"nodes": 100, "groups": 4, "depth_nodes": 8, "adversary_steps": 2, "bootstrap": 100}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama, and sets of transcoders and of attention's SAEs."""
    folder, hosted = tmp_path_factory.mktemp("roots"), tiny_hosted("llama")
    tiny_folder("llama", folder / "models" / "tiny")
    write_transcoders(hosted, folder / "sets" / "tc", layers=(0, 1))
    write_transcoders(hosted, folder / "sets" / "all", layers=(0, 1, 2))
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
    for name in ("tc", "attn", "all"):
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


def behaviour(model: Model) -> Operation[Any]:
    return model.start_discover_dataset(ROWS[:40], ROWS[40:], **BEHAVIOUR)


def told_of_behaviour(found: Any) -> Any:
    told = json.loads(found.to_json())
    return {key: told[key] for key in set(told) - {"name", "createTime", "seconds", "peakExtraBytes"}}


def over_texts(model: Model) -> Operation[Any]:
    return model.start_discover_global(TEXTS[:120], TEXTS[120:], **GLOBAL)


def told_of_texts(circuit: Any) -> Any:
    info = circuit.info  # what is not a number is unlike itself, so that words are compared
    return repr((circuit.nodes(), circuit.edges(), info.sets, info.across, info.caveats))


KINDS = {
    "graph": (graph, "attribution", told_of_graph),
    "verification": (report, "single", told_of_report),
    "behaviour": (behaviour, "faithfulness", told_of_behaviour),
    "texts": (over_texts, "held-out ablations", told_of_texts),
}
"""What is found: how it is started, the stage in which it is disturbed, and what must be the same."""


def stored(trephine: Trephine) -> set[str]:
    """Every circuit that a user sees."""
    return {one.name for one in (*trephine.circuits.list(), *trephine.dataset_circuits.list())}


def left_over(state: Path) -> list[Path]:
    """Folders and files that were not published."""
    return list(state.rglob(".trephine-tmp-*"))


@pytest.mark.parametrize("kind", KINDS)
def test_it_outlives_its_server(tmp_path: Path, roots: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    """Killed in the middle it is found again, goes on with its sets unasked, and ends the same, once."""
    (start, stage, told), state = KINDS[kind], tmp_path / "state"
    with served(state, roots, monkeypatch) as trephine:
        model = opened(trephine)
        expected = told(start(model).result())
        before = stored(trephine)
        operation = start(model)
        at_work(operation, stage)
        fell(state)
    with served(state, roots, monkeypatch) as trephine:
        again = trephine.operations.get(operation.name)
        assert told(again.result()) == expected
        assert again.refresh().attempts == 2
        assert len(stored(trephine) - before) == (kind != "verification")
        assert left_over(state) == []


@pytest.mark.parametrize("kind", ["behaviour", "texts"])
def test_it_outlives_its_engine(tmp_path: Path, roots: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    """A fresh engine has its sets unasked, and starts over; until it ends nothing of it is to be seen."""
    (start, stage, told), state = KINDS[kind], tmp_path / "state"
    with served(state, roots, monkeypatch) as trephine:
        model = opened(trephine)
        expected = told(start(model).result())
        before = stored(trephine)
        operation = start(model)
        at_work(operation, stage)
        [engine] = engine_processes(state)
        kill(engine)
        assert stored(trephine) == before
        assert told(operation.result()) == expected
        assert operation.refresh().attempts >= 2
        assert len(stored(trephine) - before) == 1
