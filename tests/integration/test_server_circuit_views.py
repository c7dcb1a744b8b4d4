"""Edges taken apart and attention traced: from a real engine process to what the command line prints."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import pytest_asyncio

from tests.builders import tiny_folder
from tests.integration.server_house import Edge, edge, field, reason
from trephine.client.aio.circuit import AsyncCircuits
from trephine.client.aio.model import AsyncModel
from trephine.client.aio.wire import AsyncWire
from trephine.client.cli.circuit_views import print_edges, print_trace
from trephine.client.cli.output import Output
from trephine.client.decoding import decode
from trephine.client.endpoint import Endpoint
from trephine.client.errors import InvalidRequestError, NothingMatchedError, UnsupportedOptionError
from trephine.client.types import ModelInfo, NodeKind
from trephine.ipc.engine_proxy import SubprocessEngineLauncher
from trephine.v1 import circuit_views_pb2 as pb
from trephine.v1 import model_service_pb2
from trephine.v1.circuit_service_pb2_grpc import CircuitServiceStub

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
PROMPT = "When Mary and John went to the store"
CAPITAL = Path(__file__).parents[1] / "fixtures" / "circuit_tracer" / "capital.json"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    """A server over a real engine process with a tiny Llama."""
    folder = tmp_path_factory.mktemp("edge")
    tiny_folder("llama", folder / "roots" / "tiny")
    async with edge(folder, launcher=SubprocessEngineLauncher(threads=1)) as house:
        await house.load()
        yield house


@pytest_asyncio.fixture(loop_scope="module")
async def model(server: Edge) -> AsyncModel:
    """The async client's model of that server."""
    wire = AsyncWire(Endpoint(address=server.address))
    request = model_service_pb2.GetModelRequest(name="models/tiny")
    return AsyncModel(wire, decode(ModelInfo, await wire.call(wire.models.GetModel, request)))


async def test_edges_are_explained_and_printed(server: Edge, model: AsyncModel, capsys):
    """The heaviest edges into a node, and a named one; their parts are in the tables."""
    circuit = await model.discover(
        PROMPT, target=" Mary", against=" John", max_feature_nodes=24, verify_nodes=0
    )
    target = (await circuit.nodes(kind=NodeKind.LOGIT))[0].index
    heaviest = await circuit.edges(target=target)
    found = await circuit.explain(node=target, top=3, paths=4, heads=3, tokens=2)
    assert [one.ends.source for one in found.edges] == [one.source for one in heaviest[:3]]
    for one, known in zip(found.edges, heaviest, strict=False):
        assert one.weight == pytest.approx(known.weight, rel=1e-3, abs=1e-5)
        heads = sum(share.weight for share in one.heads)
        assert one.direct + heads + one.heads_remainder == pytest.approx(one.weight, abs=1e-9)
        assert {len(path.excites) for path in one.paths} == {2}
    named = await circuit.explain([(heaviest[5].source, target)], paths=0)
    assert (named.edges[0].stored, named.edges[0].paths) == (heaviest[5].weight, ())
    print_edges(Output(json=False), found)
    printed = capsys.readouterr().out
    assert f"{found.edges[0].weight:+.4g}" in printed
    assert printed.count("other paths") == 3
    assert str(found.edges[0].heads[0].hop) in printed
    with pytest.raises(InvalidRequestError, match="give edges, or a node"):
        await circuit.explain()
    token = (await circuit.nodes(kind=NodeKind.TOKEN))[0].index
    with pytest.raises(NothingMatchedError):
        await circuit.explain(node=token)
    imported = await AsyncCircuits(model._wire).import_graph(CAPITAL)
    with pytest.raises(UnsupportedOptionError, match="imported"):
        await imported.explain(node=0)


async def test_attention_is_traced_and_printed(server: Edge, model: AsyncModel, capsys):
    """Score, shares and residual come through; bad fields are named."""
    trace = await model.trace_attention(PROMPT, layer=2, head=1, top=5)
    assert trace.terms_sum == pytest.approx(trace.score, abs=1e-5)
    assert trace.shares_sum == pytest.approx(trace.weight - trace.even, abs=1e-4)
    assert (len(trace.query_side), len(trace.key_side), len(trace.pairs)) == (5, 5, 5)
    assert trace.version.model == "models/tiny"
    print_trace(Output(json=False), trace, 5)
    printed = capsys.readouterr().out
    assert f"query {trace.query} ' store' to key {trace.key}" in printed
    assert trace.pairs[0].key.label in printed
    other = await model.trace_attention(PROMPT, layer=2, head=1, query=3, key=1, top=5)
    assert (other.query, other.key) == (3, 1)
    stub = server.stub(CircuitServiceStub)
    for broken, where in (({"layer": -1}, "layer"), ({"head": 9}, "head"), ({"query": 50}, "query")):
        ask = pb.TraceAttentionRequest(**{"model": "models/tiny", "prompt": PROMPT, "layer": 1, **broken})
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.TraceAttention(ask)
        assert field(refused.value) == where
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.TraceAttention(
            pb.TraceAttentionRequest(model="models/tiny", prompt=PROMPT, replacement="none")
        )
    assert reason(refused.value) == "REPLACEMENT_NOT_FOUND"
