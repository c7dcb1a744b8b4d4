"""Global circuits through a real gRPC server and a real engine process, with the async client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from tests.builders import tiny_folder
from tests.global_texts import texts
from tests.integration.server_house import Edge, edge
from trephine.client.aio.circuit import AsyncCircuits
from trephine.client.aio.model import AsyncModel
from trephine.client.aio.models import AsyncModels
from trephine.client.aio.wire import AsyncWire
from trephine.client.endpoint import Endpoint
from trephine.client.errors import (
    AlreadyExistsError,
    CancelledByCallerError,
    FeatureOutOfRangeError,
    InvalidRequestError,
    LayerOutOfRangeError,
    NothingMatchedError,
    ReplacementNotFoundError,
    ShapeMismatchError,
    TargetNotOneTokenError,
    TrephineError,
    UnsupportedOptionError,
)
from trephine.client.types import DirectionValue, EdgeWeighting, MeasuredTokens, NodeKind, Site, SiteKind
from trephine.ipc.engine_proxy import SubprocessEngineLauncher

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]

ALL = texts(32)
TRAINING, HELD_OUT = ALL[:24], ALL[24:]
SMALL: dict[str, Any] = {
    "max_nodes": 16, "max_tokens": 4, "max_logits": 4, "candidates": 48, "verify_edges": 12, "bootstrap": 50,
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


async def test_what_is_found_is_stored_and_served(wire: AsyncWire, model: AsyncModel):
    """Nodes, edges, parts and files are those of a circuit; what needs a prompt is refused."""
    stages = set()
    found = await model.discover_global(
        TRAINING, HELD_OUT, on_progress=lambda progress: stages.add(progress.stage), **SMALL
    )
    assert {"activity", "co-activation", "held-out ablations"} <= stages
    again = await AsyncCircuits(wire).get(found.name)
    assert again.info.across == found.info.across
    across = again.info.across
    assert across is not None
    assert (across.training, across.held_out, across.weighting) == (24, 8, EdgeWeighting.TWERA)
    assert [one.measured for one in across.transfer] == [
        MeasuredTokens.SOURCE_ACTIVE,
        MeasuredTokens.TARGET_ACTIVE,
    ]
    nodes, edges = await again.nodes(), await again.edges()
    assert {node.kind for node in nodes} == {NodeKind.FEATURE, NodeKind.TOKEN, NodeKind.LOGIT}
    assert (len(nodes), len(edges)) == (again.info.n_nodes, again.info.n_edges)
    strongest = max(edges, key=lambda one: abs(one.weight))
    part = await again.around(strongest.target, ancestors=1, descendants=0)
    assert strongest.source in {node.index for node in part.nodes}
    assert len((await again.json())["nodes"]) == len(nodes)
    assert (await again.graphml()).count("<node ") == len(nodes)
    assert "every position" in await again.html()
    assert found.name in {one.name for one in await AsyncCircuits(wire).list()}
    smaller = await again.prune(max_nodes=8)
    assert smaller.info.across == again.info.across
    assert 0 < smaller.info.n_nodes < again.info.n_nodes
    for refused in (again.verify(), again.explain(node=0)):
        with pytest.raises(UnsupportedOptionError, match="global"):
            await refused


async def test_it_grows_from_features_tokens_and_a_direction(model: AsyncModel):
    """All at once: the feature is a node, the token and the direction are targets."""
    site = Site(kind=SiteKind.RESID_POST, layer=1)
    vector = tuple(float(place % 3 - 1) for place in range(32))
    found = await model.discover_global(
        TRAINING,
        HELD_OUT,
        start_features=[(1, 5)],
        start_tokens=[" Paris"],
        start_direction=DirectionValue(site=site, vector=vector, name="probe"),
        weighting="era",
        **{**SMALL, "max_logits": 0},
    )
    assert [target.label for target in found.info.targets] == [" Paris", "probe"]
    features = [node.feature for node in await found.nodes(kind=NodeKind.FEATURE)]
    assert (1, 5) in {(one.layer, one.index) for one in features if one is not None}
    assert found.info.edge_rule == "era"


async def test_the_same_request_id_is_the_same_operation(model: AsyncModel):
    """And another question under it is refused."""
    request_id = str(uuid4())
    first = await model.start_discover_global(TRAINING, HELD_OUT, request_id=request_id, **SMALL)
    second = await model.start_discover_global(TRAINING, HELD_OUT, request_id=request_id, **SMALL)
    assert first.name == second.name
    assert (await first.result()).name == (await second.result()).name
    with pytest.raises(AlreadyExistsError):
        await model.start_discover_global(TRAINING[:5], HELD_OUT, request_id=request_id, **SMALL)


async def test_a_prediction_finds_nothing(wire: AsyncWire, model: AsyncModel):
    """More texts take longer; no more candidates are counted than there are features."""
    before = {one.name for one in await AsyncCircuits(wire).list()}
    few = await model.predict_discover_global(TRAINING[:4], HELD_OUT)
    many = await model.predict_discover_global(TRAINING, HELD_OUT, candidates=8192)
    assert 0 < few.seconds < many.seconds
    assert few.across is not None
    assert few.across.features == few.across.candidates == 3 * 64
    assert few.across.training_tokens == 4 * 8
    assert 0 < few.peak_extra_bytes < many.peak_extra_bytes
    assert {one.name for one in await AsyncCircuits(wire).list()} == before


async def test_cancelling_ends_it(model: AsyncModel):
    """Ablations of many sources would take long; it ends within a quantum."""
    started = await model.start_discover_global(
        texts(400, words=60, seed=3), HELD_OUT, **{**SMALL, "verify_edges": 256}
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
        (TRAINING, HELD_OUT, {"layers": (0, 7)}, LayerOutOfRangeError, "layers[1]"),
        (TRAINING, HELD_OUT, {"replacement": "none"}, ReplacementNotFoundError, "replacement"),
        (TRAINING, HELD_OUT, {"max_nodes": 0}, InvalidRequestError, "max_nodes"),
        (TRAINING, HELD_OUT, {"candidates": 10}, InvalidRequestError, "candidates"),
    ],
)
async def test_bad_requests_are_refused_before_any_work(
    model: AsyncModel, training: Any, held_out: Any, options: Any, error: type[TrephineError], field: str
):
    """With the path of the field."""
    with pytest.raises(error) as caught:
        await model.start_discover_global(training, held_out, **options)
    assert caught.value.context.get("field") == field


@pytest.mark.parametrize(
    ("options", "error", "field"),
    [
        ({"start_tokens": [" no word"]}, TargetNotOneTokenError, "start_tokens[0]"),
        ({"start_features": [(0, 9999)]}, FeatureOutOfRangeError, "start_features[0].index"),
        ({"layers": (1,)}, InvalidRequestError, "layers"),
        (
            {"start_direction": DirectionValue(site=Site(kind=SiteKind.RESID_PRE, layer=1), vector=(1.0,))},
            ShapeMismatchError,
            "start_direction.vector",
        ),
    ],
)
async def test_a_prediction_refuses_what_the_work_would(
    model: AsyncModel, options: Any, error: type[TrephineError], field: str
):
    """Without a pass."""
    for ask in (model.predict_discover_global, model.discover_global):
        with pytest.raises(error) as caught:
            await ask(TRAINING, HELD_OUT, **{**SMALL, **options})
        assert caught.value.context["field"] == field


async def test_features_that_are_never_active_fail_the_operation(model: AsyncModel):
    """It takes a pass to know."""
    with pytest.raises(NothingMatchedError, match="lower min_active"):
        await model.discover_global(TRAINING, HELD_OUT, start_features=[(1, 5)], min_active=100_000, **SMALL)
