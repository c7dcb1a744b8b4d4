"""Stored circuits through a real gRPC server, and growing ones from a real engine process."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
import pytest_asyncio
from google.longrunning import operations_pb2 as longrunning
from google.longrunning.operations_pb2_grpc import OperationsStub

from tests.builders import tiny_folder
from tests.integration.server_house import Edge, edge, field, reason
from trephine.client.aio.circuit import AsyncCircuit, AsyncCircuits
from trephine.client.aio.wire import AsyncWire
from trephine.client.circuit import Circuits
from trephine.client.cli import main
from trephine.client.endpoint import Endpoint
from trephine.client.errors import (
    InvalidRequestError,
    NothingMatchedError,
    ResourceNotFoundError,
    UnsupportedOptionError,
)
from trephine.client.types import GroupQuality, NodeKind
from trephine.client.wire import Wire
from trephine.ipc.engine_proxy import SubprocessEngineLauncher
from trephine.v1 import circuit_queries_pb2 as queries
from trephine.v1 import circuit_service_pb2 as circuits
from trephine.v1 import circuit_targets_pb2 as targets
from trephine.v1 import common_pb2 as common
from trephine.v1 import operation_service_pb2 as operations
from trephine.v1.circuit_service_pb2_grpc import CircuitServiceStub
from trephine.v1.operation_service_pb2_grpc import OperationServiceStub

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
PROMPT = "When Mary and John went to the store, John gave a drink to"
_FEATURE, _SCORE = targets.FeatureValue, targets.AttentionScore
_SHORT = targets.DirectionValue(site=common.Site(kind=common.SITE_KIND_RESID_POST), vector=[1.0])
CAPITAL = Path(__file__).parents[1] / "fixtures" / "circuit_tracer" / "capital.json"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    """A server over a real engine process with a tiny Llama: one for the module."""
    folder = tmp_path_factory.mktemp("edge")
    tiny_folder("llama", folder / "roots" / "tiny")
    async with edge(folder, launcher=SubprocessEngineLauncher(threads=1)) as house:
        await house.load()
        yield house


@pytest_asyncio.fixture(loop_scope="module")
async def stored(server: Edge) -> AsyncIterator[AsyncCircuits]:
    """The async client's circuits of that server."""
    yield AsyncCircuits(AsyncWire(Endpoint(address=server.address)))


def request(nodes: int = 24, prompt: str = PROMPT) -> circuits.DiscoverCircuitRequest:
    return circuits.DiscoverCircuitRequest(
        model="models/tiny",
        prompt=prompt,
        target=targets.GraphTarget(logit=common.LogitTarget(token=" Mary", against=" John")),
        request_id=str(uuid4()),
        max_feature_nodes=nodes,
        verify_nodes=0,
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def found(server: Edge) -> AsyncIterator[str]:
    """The name of a discovered circuit."""
    started = await server.stub(CircuitServiceStub).DiscoverCircuit(request())
    done, circuit = await server.wait(started), circuits.Circuit()
    assert done.response.Unpack(circuit), done
    yield circuit.name


async def test_a_growing_circuit_is_watched_and_ends_within_a_quantum(server: Edge):
    """After each round a partial graph arrives, growing; cancelled after two rounds, it ends so."""
    started = await server.stub(CircuitServiceStub).DiscoverCircuit(request(600, PROMPT * 3))
    partials = []
    watch = operations.WatchRequest(name=started.name)
    async for update in server.stub(OperationServiceStub).Watch(watch):
        if update.HasField("partial_circuit"):
            partials.append(update.partial_circuit)
        if len(partials) == 2 and not update.metadata.state.startswith("cancel"):
            await server.stub(OperationsStub).CancelOperation(
                longrunning.CancelOperationRequest(name=started.name)
            )
        last = update
    assert [one.expanded for one in partials[:2]] == [64, 128]
    assert last.metadata.state == "cancelled"
    assert not last.HasField("partial_circuit")
    first, second = partials[:2]
    assert 0 < first.inside < second.inside <= 1
    assert len(second.nodes) == 32
    assert [one.influence for one in second.nodes] == sorted(
        (n.influence for n in second.nodes), reverse=True
    )
    assert second.edges
    assert all(-1 <= one.target < 32 and 0 <= one.source < 32 for one in second.edges)


async def test_pruning_and_hierarchy_are_part_of_the_request(stored: AsyncCircuits, server: Edge):
    """What is asked for at discovery is in figures, notes and the exported document; rows still sum."""
    asked = request()
    asked.min_attribution = 0.001
    asked.pruning.max_edges = 20
    asked.pruning.node_threshold = asked.pruning.edge_threshold = 1.0
    done = await server.wait(await server.stub(CircuitServiceStub).DiscoverCircuit(asked))
    message = circuits.Circuit()
    assert done.response.Unpack(message), done
    hierarchy = message.hierarchy
    assert 0 < hierarchy.survivors <= 24
    parts = hierarchy.tokens + hierarchy.errors + hierarchy.constants + hierarchy.stopped
    assert parts == pytest.approx(hierarchy.root, abs=1e-3)
    assert message.n_edges <= 20
    assert message.provenance.how == "node threshold 1, edge threshold 1, at most 20 edges"
    circuit = await stored.get(message.name)
    document = await circuit.json(node_threshold=1.0, edge_threshold=1.0)
    info = document["metadata"]["info"]
    assert info["hierarchical_attribution"]["survivors"] == hierarchy.survivors
    assert [note for note in info["caveats"] if "Pruned when it was found" in note]
    assert "hierarchical attribution" in await circuit.html()
    page = await circuit.nodes()
    entering = {node.index: 0.0 for node in page}
    for one in await circuit.edges():
        entering[one.target] += one.weight
    rows = [node for node in page if node.total is not None]
    assert rows
    for node in rows:
        assert entering[node.index] + node.bias + node.remainder == pytest.approx(node.total, abs=1e-3)
    await circuit.delete()


@pytest.mark.parametrize(
    ("change", "why", "where"),
    [
        ({"feature": _FEATURE(layer=1, index=999)}, "FEATURE_OUT_OF_RANGE", "target.feature.index"),
        ({"feature": _FEATURE(layer=99, index=0)}, "LAYER_OUT_OF_RANGE", "target.feature.layer"),
        ({"attention": _SCORE(layer=0, head=77)}, "INVALID_REQUEST", "target.attention.head"),
        ({"attention": _SCORE(layer=0, head=0, key=500)}, "POSITION_OUT_OF_RANGE", "target.attention.key"),
        ({"direction": _SHORT}, "SHAPE_MISMATCH", "target.direction.vector"),
        ({"positions": [3, 77]}, "POSITION_OUT_OF_RANGE", "target.positions"),
        ({"prompt": " Mary"}, "INVALID_REQUEST", "prompt"),
    ],
)
async def test_validate_only_refuses_what_would_fail_later(
    server: Edge, change: dict[str, Any], why: str, where: str
):
    """Addresses, widths, positions and one-token prompts are refused before any operation is made."""
    asked = request()
    asked.validate_only = True
    if "prompt" in change:
        asked.prompt = change["prompt"]
    elif "positions" in change:
        asked.target.positions.extend(change["positions"])
    else:
        asked.target.CopyFrom(targets.GraphTarget(**change))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await server.stub(CircuitServiceStub).DiscoverCircuit(asked)
    assert (reason(caught.value), field(caught.value)) == (why, where)


async def test_parts_are_paged_and_refusals_name_their_field(server: Edge, found: str):
    """Nodes and paths come with the first page, edges on every one; a token continues its question only."""
    stub = server.stub(CircuitServiceStub)
    ask = queries.QuerySubgraphRequest(
        circuit=found, around=queries.AroundNode(node=3, ancestors=9, descendants=9), page_size=7
    )
    pages = [await stub.QuerySubgraph(ask)]
    while pages[-1].next_page_token:
        ask.page_token = pages[-1].next_page_token
        pages.append(await stub.QuerySubgraph(ask))
    edges = [edge for page in pages for edge in page.edges]
    assert len(pages) > 2
    assert len(edges) == pages[0].n_edges
    assert len(pages[0].nodes) == pages[0].n_nodes > 3
    assert not pages[1].nodes
    weights = [abs(edge.weight) for edge in edges]
    assert weights == sorted(weights, reverse=True)
    ask.around.node = 4
    for broken, where in (
        (ask, "page_token"),
        (queries.QuerySubgraphRequest(circuit=found), "part"),
        (queries.QuerySubgraphRequest(circuit="x", around=queries.AroundNode()), "circuit"),
        (queries.QuerySubgraphRequest(circuit=found, around=queries.AroundNode(node=-1)), "around.node"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.QuerySubgraph(broken)
        assert field(refused.value) == where
    for end in ("source", "target"):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.ListEdges(circuits.ListEdgesRequest(circuit=found, **{end: 9999}))
        assert field(refused.value) == end
    small = await stub.QuerySubgraph(
        queries.QuerySubgraphRequest(
            circuit=found, around=queries.AroundNode(node=3, ancestors=9), max_nodes=3
        )
    )
    assert small.cut
    assert len(small.nodes) == 3 < small.n_nodes


async def test_circuits_are_asked_annotated_pruned_and_compared(stored: AsyncCircuits, found: str):
    """One life of a circuit through the async client, an answer of every call looked at."""
    circuit = await stored.get(found)
    features = await circuit.nodes(kind=NodeKind.FEATURE, order="index")
    target = (await circuit.nodes(kind=NodeKind.LOGIT))[0].index
    between = await circuit.between(features[0].index, target, paths=3)
    assert {path.nodes[0] for path in between.paths} == {features[0].index}
    assert {path.nodes[-1] for path in between.paths} == {target}
    with pytest.raises(NothingMatchedError, match="the other way round"):
        await circuit.between(target, features[0].index)
    weakest = (await circuit.nodes(kind=NodeKind.FEATURE))[-1].index
    await circuit.pin(weakest, author="ann")
    await circuit.label(weakest, "rare", author="ann")
    await circuit.group("ends", weakest, features[0].index)
    shown = (await circuit.nodes(pinned=True))[0]
    assert shown.given_label is not None
    assert (shown.index, shown.given_label.text, shown.group, shown.pinned) == (weakest, "rare", "ends", True)
    small = await circuit.prune(node_threshold=0.5, max_nodes=5)
    assert (await circuit.prune(node_threshold=0.5, max_nodes=5)).name == small.name
    counted = await circuit.prune(node_threshold=0.5, max_nodes=5, validate_only=True)
    assert (counted.name, counted.info.n_nodes) == ("", small.info.n_nodes)
    assert small.info.provenance.parent == circuit.name
    assert [one.given_label and one.given_label.text for one in await small.nodes(pinned=True)] == ["rare"]
    diff = await circuit.diff(small)
    assert diff.n_nodes == circuit.info.n_nodes
    assert all(one.first for one in diff.nodes)
    assert [one.name async for one in _named(stored, parent=circuit.name)] == [small.name]
    assert [one.name async for one in _named(stored, prompt="MARY and", model="tiny")]
    await small.delete()
    with pytest.raises(ResourceNotFoundError):
        await stored.get(small.name)


async def _named(stored: AsyncCircuits, **wanted: str) -> AsyncIterator[AsyncCircuit]:
    for one in await stored.list(**wanted):
        yield one


async def test_the_strongest_features_have_pages_that_the_circuit_links(
    server: Edge, stored: AsyncCircuits, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Clients and command line write two pages beside the circuit's, which names them at these features."""
    wire = Wire(Endpoint(address=server.address))
    circuit = await asyncio.to_thread(Circuits(wire).get, found)
    written = await asyncio.to_thread(circuit.save, tmp_path / "sync", feature_pages=2)
    await asyncio.to_thread(wire.close)
    nodes = [one for one in await (await stored.get(found)).nodes(kind=NodeKind.FEATURE) if one.feature]
    strongest = list(dict.fromkeys((one.feature.layer, one.feature.index) for one in nodes))[:2]
    files = [f"neurons-{layer}-{index}.html" for layer, index in strongest]
    assert [path.name for path in written] == ["circuit.html", "circuit.json", *files]
    island = re.search(r'<script type="application/json" id="data">(.*?)</script>', written[0].read_text())
    assert island is not None
    page = json.loads(island[1])
    linked = {page["ids"][int(place)]: file for place, file in page["pages"].items()}
    assert set(linked.values()) == set(files)
    assert all(file == f"neurons-{'-'.join(name.split('_')[:2])}.html" for name, file in linked.items())
    for path, (layer, index) in zip(written[2:], strongest, strict=True):
        assert f"<h1>Neuron {layer}:{index}</h1>" in path.read_text()
    awaited = await (await stored.get(found)).save(tmp_path / "async", feature_pages=2)
    assert [path.read_bytes() for path in awaited] == [path.read_bytes() for path in written]
    words = ("circuits", "export", found, "--out", str(tmp_path / "cli"), "--feature-pages", "2")
    monkeypatch.setattr(sys, "argv", ["trephine", "--server", server.address, *words])
    with pytest.raises(SystemExit) as ended:
        await asyncio.to_thread(main)
    assert not ended.value.code
    for path in written:
        assert (tmp_path / "cli" / path.name).read_bytes() == path.read_bytes()


async def test_groups_by_direction_come_from_the_engine(stored: AsyncCircuits, found: str):
    """Random neurons are hardly alike: at a small bound the same neurons at several positions are found."""
    circuit = await stored.get(found)
    said = await circuit.group_automatically(min_similarity=0.05, max_positions_apart=20, author="bob")
    automatic = [one for one in said.groups if one.how]
    assert automatic
    nodes = {one.index: one for one in await circuit.nodes()}
    assert all(nodes[member].kind is NodeKind.FEATURE for one in automatic for member in one.nodes)
    # Where a group by hand keeps its nodes, what is left was found as a larger one.
    whole = [one for one in automatic if not one.how.startswith("of a larger group: ")]
    assert all(one.cohesion is not None and one.cohesion >= 0.05 for one in whole)
    assert all(one.cohesion is None for one in automatic if one not in whole)
    document = await circuit.export_annotations()
    assert {one[0] for one in document["supernodes"]} == {one.name for one in said.groups}
    again, skipped = await circuit.import_annotations(document)
    assert (len(again.groups), skipped) == (len(said.groups), ())


async def test_found_groups_come_with_scores_and_hand_made_ones_are_scored_when_asked(
    stored: AsyncCircuits, found: str
):
    """Every figure stands beside two controls; a threshold is chosen or given, not both; doubt is no pass."""
    circuit = await stored.get(found)
    said = await circuit.group_automatically(by="edges", min_shown=0.5, max_positions_apart=20)
    assert said.scores is not None
    assert said.not_scored == ""
    assert {one.group for one in said.scores.groups} == {one.name for one in said.groups}
    assert [one.quality for one in said.scores.whole] == list(GroupQuality)[1:]
    assert all(0 < control.p <= 1 for one in said.scores.whole for control in (one.random, one.by_layer))
    shown = said.scores.whole[-1]
    assert shown.value >= 0.5
    assert shown.value == pytest.approx(1 - said.scores.inside - said.scores.cancelled)
    assert said.scores.before.nodes == circuit.info.n_nodes
    assert said.scores.after.nodes < said.scores.before.nodes
    assert said.scores.verdict.split(":")[0] in ("BEATS", "DOES NOT BEAT", "INCONCLUSIVE")
    again = await circuit.group_scores()
    assert again.whole == said.scores.whole
    assert (await circuit.annotations()).scores is None
    with pytest.raises(InvalidRequestError, match="name one of the two"):
        await circuit.group_automatically(by="edges", min_shown=0.5, min_similarity=0.3)
    with pytest.raises(NothingMatchedError, match="lower min_shown"):
        await circuit.group_automatically(by="edges", min_shown=1.0, max_layers_apart=0)


async def test_a_foreign_graph_is_imported_and_nothing_can_be_made_of_it(stored: AsyncCircuits, server: Edge):
    """It is marked, queried and exported; a file that is no graph is refused."""
    imported = await stored.import_graph(CAPITAL)
    assert imported.info.provenance.origin == "imported"
    target = (await imported.nodes(kind=NodeKind.LOGIT))[0].index
    assert (await imported.around(target, descendants=0)).n_edges > 5
    document = await imported.json(node_threshold=1.0, edge_threshold=1.0)
    assert len(document["links"]) == len(json.loads(CAPITAL.read_bytes())["links"])
    assert "graphml" in await imported.graphml()
    with pytest.raises(UnsupportedOptionError, match="no edit can rest on it"):
        await imported.start_shippable()
    with pytest.raises(InvalidRequestError, match="no JSON"):
        await stored.import_graph(b"x")
    with pytest.raises(grpc.aio.AioRpcError) as missing:
        await server.stub(CircuitServiceStub).ImportCircuit(
            queries.ImportCircuitRequest(artifact="artifacts/" + "0" * 64)
        )
    assert reason(missing.value) == "RESOURCE_NOT_FOUND"
