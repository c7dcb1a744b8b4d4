"""Circuits over datasets through a real gRPC server and a real engine process, with the async client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from tests.builders import tiny_folder
from tests.dataset_examples import examples
from tests.integration.server_house import Edge, edge
from trephine.client.aio.dataset_circuits import AsyncDatasetCircuits
from trephine.client.aio.model import AsyncModel
from trephine.client.aio.models import AsyncModels
from trephine.client.aio.wire import AsyncWire
from trephine.client.endpoint import Endpoint
from trephine.client.errors import (
    AlreadyExistsError,
    CancelledByCallerError,
    InvalidRequestError,
    LayerOutOfRangeError,
    ReplacementNotFoundError,
    ResourceNotFoundError,
    TargetNotOneTokenError,
    TrephineError,
    UnsupportedOptionError,
)
from trephine.client.types import DatasetExample, EffectEstimator, NodeAblation, NodeKind, PositionRule
from trephine.ipc.engine_proxy import SubprocessEngineLauncher

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

ROWS = [
    DatasetExample(clean=one.clean, corrupted=one.corrupted, answers=one.answers, wrong=one.wrong)
    for one in examples(16)
]
TRAINING, HELD_OUT = ROWS[:10], ROWS[10:]
SMALL: dict[str, Any] = {
    "nodes": 6, "edge_nodes": 3, "edge_examples": 2, "random_circuits": 3, "bootstrap": 20,
    "stability_draws": 4,
}  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    """A server over a real engine process with a tiny Llama: one for the module."""
    folder = tmp_path_factory.mktemp("edge")
    tiny_folder("llama", folder / "roots" / "tiny")
    async with edge(folder, launcher=SubprocessEngineLauncher(threads=1)) as house:
        await house.load()
        yield house


@pytest_asyncio.fixture(loop_scope="module")
async def wire(server: Edge) -> AsyncIterator[AsyncWire]:
    """A connection."""
    yield AsyncWire(Endpoint(address=server.address))


@pytest_asyncio.fixture(loop_scope="module")
async def model(wire: AsyncWire) -> AsyncIterator[AsyncModel]:
    """The tiny model."""
    yield AsyncModel(wire, await AsyncModels(wire).get("tiny"))


async def test_what_is_found_is_stored_and_read_back(wire: AsyncWire, model: AsyncModel):
    """Progress streams; the operation's response, the stored one and the listed one agree."""
    stages = set()
    found = await model.discover_dataset(
        TRAINING,
        HELD_OUT,
        on_progress=lambda progress: stages.add(progress.stage),
        ablations=("mean", "resample"),
        positions="kept",
        **SMALL,
    )
    assert stages
    stored = AsyncDatasetCircuits(wire)
    again = await stored.get(found.name)
    assert again.circuits == found.circuits
    assert (again.positions, again.estimator) == (PositionRule.KEPT, EffectEstimator.ATTRIBUTION_PATCHING)
    (circuit,) = again.circuits
    assert [one.ablation for one in circuit.faithfulness] == [NodeAblation.MEAN, NodeAblation.RESAMPLE]
    assert circuit.faithfulness[0].core is not None
    assert len(circuit.nodes) == 6
    assert json.loads(again.to_json())["circuits"][0]["nodes"]
    listed = [one for one in await stored.list() if one.name == found.name]
    assert listed[0].circuits == ()
    assert listed[0].training == 10


async def test_heads_are_nodes_where_asked_for(model: AsyncModel):
    """Beside neurons, in nodes and in what was abstained on; the share of effects is told."""
    found = await model.discover_dataset(TRAINING, HELD_OUT, beside=("heads",), **{**SMALL, "nodes": 40})
    (circuit,) = found.circuits
    assert found.beside == ("heads",)
    assert {node.feature.replacement for node in circuit.nodes} == {"neurons", "heads"}
    assert 0 < circuit.effect_share < 1
    cheap, dear = [
        await model.predict_discover_dataset(
            TRAINING, HELD_OUT, beside=beside, estimator="integrated_gradients"
        )
        for beside in ((), ("heads",))
    ]
    assert cheap.seconds < dear.seconds
    assert dear.beside == ("heads",)


async def test_the_same_request_id_is_the_same_operation(model: AsyncModel):
    """And another question under it is refused."""
    request_id = str(uuid4())
    first = await model.start_discover_dataset(TRAINING, HELD_OUT, request_id=request_id, **SMALL)
    second = await model.start_discover_dataset(TRAINING, HELD_OUT, request_id=request_id, **SMALL)
    assert first.name == second.name
    assert (await first.result()).name == (await second.result()).name
    with pytest.raises(AlreadyExistsError):
        await model.start_discover_dataset(TRAINING[:5], HELD_OUT, request_id=request_id, **SMALL)


async def test_a_prediction_finds_nothing(wire: AsyncWire, model: AsyncModel):
    """Dearer estimators are predicted to be dearer; nothing is stored."""
    before = await AsyncDatasetCircuits(wire).list()
    cheap = await model.predict_discover_dataset(TRAINING, HELD_OUT)
    dear = await model.predict_discover_dataset(
        TRAINING, HELD_OUT, estimator="integrated_gradients", steps=50
    )
    assert 0 < cheap.seconds < dear.seconds
    assert cheap.peak_extra_bytes > 0
    assert (cheap.candidates, cheap.patch) == (3 * 64, NodeAblation.RESAMPLE)
    assert not cheap.circuits
    assert await AsyncDatasetCircuits(wire).list() == before


async def test_cancelling_ends_it(model: AsyncModel):
    """Exact patching of every neuron would take long; it ends within a quantum."""
    started = await model.start_discover_dataset(
        TRAINING, HELD_OUT, estimator="exact", exact_nodes=4000, nodes=6, random_circuits=1000
    )
    await asyncio.sleep(0)
    await started.cancel()
    with pytest.raises(CancelledByCallerError):
        await started.result()


@pytest.mark.parametrize(
    ("training", "held_out", "options", "error", "field"),
    [
        (TRAINING, TRAINING, {}, InvalidRequestError, "held_out[0]"),
        (TRAINING, [], {}, InvalidRequestError, "held_out"),
        (TRAINING, HELD_OUT, {"layers": (7,)}, LayerOutOfRangeError, "layers[0]"),
        (TRAINING, HELD_OUT, {"layers": (-1,)}, InvalidRequestError, "layers[0]"),
        (TRAINING, HELD_OUT, {"replacement": "none"}, ReplacementNotFoundError, "replacement"),
        (TRAINING, HELD_OUT, {"beside": ("heads", "none")}, ReplacementNotFoundError, "beside[1]"),
        (TRAINING, HELD_OUT, {"beside": ("heads", "heads")}, InvalidRequestError, "beside"),
        (TRAINING, HELD_OUT, {"beside": ("errors",)}, InvalidRequestError, "beside"),
        (TRAINING, HELD_OUT, {"beside": ("",)}, InvalidRequestError, "beside[0]"),
        (TRAINING, HELD_OUT, {"stability_share": float("nan")}, InvalidRequestError, "stability_share"),
        (TRAINING, HELD_OUT, {"nodes": 0}, InvalidRequestError, "nodes"),
        (
            [*TRAINING, DatasetExample(clean="When", answers=())],
            HELD_OUT, {}, InvalidRequestError, "training[10].answers",
        ),
        (
            [*TRAINING, DatasetExample(clean="", answers=(" Mary",))],
            HELD_OUT, {}, InvalidRequestError, "training[10].clean",
        ),
    ],
)  # fmt: skip
async def test_bad_requests_are_refused_before_any_work(
    model: AsyncModel,
    training: Any,
    held_out: Any,
    options: Any,
    error: type[TrephineError],
    field: str | None,
):
    """With the path of the field."""
    with pytest.raises(error) as caught:
        await model.start_discover_dataset(training, held_out, **options)
    assert caught.value.context.get("field") == field


async def test_bad_contexts_fail_the_operation_by_place(model: AsyncModel):
    """And the prediction tells the same sooner."""
    bad = [*TRAINING[:3], DatasetExample(clean="When Mary", answers=(" Mary John",)), *TRAINING[3:]]
    with pytest.raises(TargetNotOneTokenError) as caught:
        await model.discover_dataset(bad, HELD_OUT, **SMALL)
    assert caught.value.context["field"] == "training[3].answers"
    with pytest.raises(TargetNotOneTokenError) as caught:
        await model.predict_discover_dataset(bad, HELD_OUT)
    assert caught.value.context["field"] == "training[3].answers"


async def test_a_prediction_refuses_what_the_work_would(model: AsyncModel):
    """Twins of another length where positions are kept, and tokens that leak: no model is run for that."""
    longer = replace(HELD_OUT[-1], corrupted=f"The{HELD_OUT[-1].corrupted}")
    with pytest.raises(InvalidRequestError, match="summed") as caught:
        await model.predict_discover_dataset(TRAINING, [*HELD_OUT[:-1], longer], positions="kept")
    assert caught.value.context["field"] == f"held_out[{len(HELD_OUT) - 1}].corrupted"
    assert (await model.predict_discover_dataset(TRAINING, [*HELD_OUT[:-1], longer])).candidates


async def test_what_is_not_there(wire: AsyncWire):
    """By name."""
    with pytest.raises(ResourceNotFoundError):
        await AsyncDatasetCircuits(wire).get("nothing")


async def test_the_folder_of_a_server_keeps_it(
    server: Edge, wire: AsyncWire, model: AsyncModel, tmp_path: Path
):
    """One JSON file each, which a later server reads."""
    found = await model.discover_dataset(TRAINING, HELD_OUT, **{**SMALL, "stability_draws": 0})
    assert found.circuits[0].nodes[0].frequency is None
    assert found.name in {one.name for one in await AsyncDatasetCircuits(wire).list()}


async def test_a_stored_one_is_a_graph_that_is_queried_and_exported(wire: AsyncWire, model: AsyncModel):
    """Nodes, edges, parts, pins, pruning, differences and files as of circuits; ablations refuse it."""
    found = await model.discover_dataset(
        TRAINING, HELD_OUT, beside=("heads",), clusters=2, **{**SMALL, "nodes": 12, "edge_nodes": 8}
    )
    behaviours = AsyncDatasetCircuits(wire)
    graph = await behaviours.graph(found.name)
    assert (await behaviours.graph(found.name)).name == graph.name
    nodes, edges = await graph.nodes(), await graph.edges()
    assert (len(nodes), len(edges)) == (13, len(found.circuits[0].edges))
    assert {node.kind for node in nodes} == {NodeKind.FEATURE, NodeKind.LOGIT}
    assert {node.position for node in nodes} == {-1}
    assert len(await graph.nodes(positions=(-1,))) == 13
    target = next(node.index for node in nodes if node.kind is NodeKind.LOGIT)
    part = await graph.around(target, ancestors=1, descendants=0)
    entering = [edge for edge in edges if edge.target == target]
    assert {edge.source for edge in entering} == {node.index for node in part.nodes} - {target}
    strongest = max(entering, key=lambda one: abs(one.weight)).source
    await graph.pin(strongest, author="me")
    await graph.label(strongest, "the one", author="me")
    smaller = await graph.prune(max_nodes=1)
    assert "the one" in {node.given_label.text for node in await smaller.nodes() if node.given_label}
    assert (await graph.graphml()).count("<node ") == 13
    assert len((await graph.json())["nodes"]) == 13
    assert "right less wrong answers" in await graph.html()
    other = await behaviours.graph(found.name, "cluster 1")
    assert (await graph.diff(other)).n_nodes >= 12
    for refused in (graph.verify(), smaller.verify(), smaller.explain(node=0)):
        with pytest.raises(UnsupportedOptionError, match=r"of a behaviour: .* is about one prompt"):
            await refused
