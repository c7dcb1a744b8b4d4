"""A circuit over attention's SAEs, transcoders and neurons, through a server and a real engine process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import networkx
import pytest
import pytest_asyncio

from tests.builders import tiny_folder, tiny_hosted
from tests.integration.server_house import Edge, edge
from tests.replacement_sets import write_saes, write_transcoders
from trephine.client.aio.circuit import AsyncCircuit, AsyncCircuits
from trephine.client.aio.model import AsyncModel
from trephine.client.aio.models import AsyncModels
from trephine.client.aio.wire import AsyncWire
from trephine.client.endpoint import Endpoint
from trephine.client.errors import (
    InvalidRequestError,
    LayerOutOfRangeError,
    ReplacementNotFoundError,
    TrephineError,
    UnsupportedOptionError,
)
from trephine.client.node_addresses import address
from trephine.client.types import FeatureValue, Node, NodeKind, Standing
from trephine.client.types.circuit_views import StreamSourceKind
from trephine.domain.sites import SiteKind
from trephine.ipc.engine_proxy import SubprocessEngineLauncher

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]
PROMPT = "When Mary and John went to the store, John gave a drink to"
SETS: dict[str, Any] = {"replacement": "tc", "beside": ["attn", "neurons"]}
LAWFUL = 1e-3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    """A tiny Llama with transcoders of two of its three layers, and SAEs on attention's output of two."""
    folder, hosted = tmp_path_factory.mktemp("edge"), tiny_hosted("llama")
    tiny_folder("llama", folder / "roots" / "tiny")
    write_transcoders(hosted, folder / "sets" / "tc", layers=(0, 1))
    write_transcoders(hosted, folder / "sets" / "rival", layers=(1, 2), seed=5)
    write_saes(hosted, folder / "sets" / "attn", kind=SiteKind.ATTN_OUT, layers=(1, 2))
    launcher = SubprocessEngineLauncher(threads=1)
    async with edge(folder, launcher=launcher, replacement_roots=(folder / "sets",)) as house:
        await house.load()
        yield house


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def model(server: Edge) -> AsyncIterator[AsyncModel]:
    """The tiny model with all sets beside it."""
    wire = AsyncWire(Endpoint(address=server.address))
    found = AsyncModel(wire, await AsyncModels(wire).get("tiny"))
    for name in ("tc", "attn", "rival"):
        await found.load_replacements(name)
    yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def circuit(model: AsyncModel) -> AsyncIterator[AsyncCircuit]:
    """A circuit over two sets and the neurons that they leave."""
    yield await model.discover(
        PROMPT, target=" Mary", against=" John", max_feature_nodes=96, verify_nodes=0, **SETS
    )


async def test_a_circuit_tells_what_it_spans(model: AsyncModel, circuit: AsyncCircuit):
    """Sets with the contents that are loaded, layers of all; every set has nodes where it should."""
    info = circuit.info
    assert info.set_names == ("tc", "attn", "neurons")
    loaded = {one.set_id: one.info.content_hash for one in await model.replacements()}
    assert [one.content_hash for one in info.sets] == [loaded["tc"], loaded["attn"], ""]
    assert info.layers == (0, 1, 2)
    places = {(one.feature.replacement, one.layer) for one in await features(circuit) if one.feature}
    assert places <= {("tc", 0), ("tc", 1), ("attn", 1), ("attn", 2), ("neurons", 2)}
    assert {name for name, _ in places} == {"tc", "attn", "neurons"}


async def features(circuit: AsyncCircuit) -> list[Node]:
    """Its features."""
    return [one for one in await circuit.nodes(kind=NodeKind.FEATURE) if one.feature is not None]


async def test_every_feature_has_an_address_and_rows_sum(circuit: AsyncCircuit):
    """Addresses with sets are one node each; what enters a node, edges inside its layer too, is its total."""
    own = {one.index: one for one in await circuit.nodes()}
    written = {address(one, circuit.info.set_names): one.index for one in await features(circuit)}
    assert len(written) == len(await features(circuit))
    assert await circuit.find(*written) == tuple(written.values())
    entering, inside = dict.fromkeys(own, 0.0), 0
    for one in await circuit.edges():
        entering[one.target] += one.weight
        ends = own[one.source], own[one.target]
        inside += ends[0].layer == ends[1].layer and all(end.kind is NodeKind.FEATURE for end in ends)
    assert inside
    for node in own.values():
        if node.total is not None:
            assert entering[node.index] + node.bias + node.remainder == pytest.approx(node.total, abs=LAWFUL)


async def test_it_does_not_differ_from_itself_nor_from_what_it_was_exported_as(
    circuit: AsyncCircuit, server: Edge
):
    """All features are in both; from the file it is known by the sets' names alone, and says so."""
    alike = await circuit.diff(circuit)
    assert alike.caveats == ()
    assert {one.name: one.value for one in alike.overlap}["feature_jaccard"] == 1
    document = await circuit.json(node_threshold=1.0, edge_threshold=1.0)
    assert len({one["node_id"] for one in document["nodes"]}) == len(document["nodes"])
    stored = AsyncCircuits(AsyncWire(Endpoint(address=server.address)))
    imported = await stored.import_graph(json.dumps(document).encode())
    assert imported.info.set_names == circuit.info.set_names
    again = await imported.json(node_threshold=1.0, edge_threshold=1.0)
    assert {one["node_id"] for one in again["nodes"]} == {one["node_id"] for one in document["nodes"]}
    compared = await circuit.diff(imported)
    kept = {one["node_id"] for one in document["nodes"] if one["feature_type"].startswith("cross")}
    assert {one.name: one.value for one in compared.overlap}["features_in_both"] == len(kept)
    assert any("features of tc, attn are matched by that name alone" in one for one in compared.caveats)
    graph = networkx.read_graphml(BytesIO((await circuit.graphml(node_threshold=1.0)).encode()))
    assert {data["replacement"] for _, data in graph.nodes(data=True)} == {"", *circuit.info.set_names}
    assert "attn" in await circuit.html()


async def test_pages_of_features_are_those_of_their_own_set(circuit: AsyncCircuit, tmp_path):
    """Each file is named by its set."""
    written = await circuit.save(tmp_path, feature_pages=40)
    names = {path.name.rsplit("-", 2)[0] for path in written[2:]}
    assert names == {"tc", "attn", "neurons"}


async def test_groups_by_direction_span_the_sets(circuit: AsyncCircuit):
    """Directions of all sets are compared; they come from the engine."""
    said = await circuit.group_automatically(min_similarity=0.05, max_positions_apart=20)
    assert said.groups


async def test_it_is_found_again_by_any_of_its_sets(circuit: AsyncCircuit, server: Edge):
    """The list's filter, and a target in the second set."""
    stored = AsyncCircuits(AsyncWire(Endpoint(address=server.address)))
    for name in circuit.info.set_names:
        assert circuit.name in [one.name for one in await stored.list(replacement=name)]


async def test_a_feature_of_a_set_beside_is_explained(model: AsyncModel, circuit: AsyncCircuit):
    """The target's set is named where it is not the first."""
    node = next(one for one in await features(circuit) if one.feature and one.feature.replacement == "attn")
    assert node.feature is not None
    found = await model.discover(
        PROMPT,
        target=FeatureValue(layer=node.layer, index=node.feature.index, replacement="attn"),
        positions=[node.position],
        max_feature_nodes=8,
        verify_nodes=0,
        **SETS,
    )
    assert found.info.set_names == circuit.info.set_names


async def test_prediction_counts_all_sets_and_tells_them(model: AsyncModel):
    """Nothing is found; more sets take longer."""
    options: dict[str, Any] = {"target": " Mary", "verify_nodes": 0, "replacement": "tc"}
    alone = await model.predict_discover(PROMPT, **options)
    both = await model.predict_discover(PROMPT, beside=["attn"], **options)
    assert 0 < alone.peak_extra_bytes < both.peak_extra_bytes
    assert 0 < alone.seconds <= both.seconds
    assert both.set_names == ("tc", "attn")
    assert all(one.content_hash for one in both.sets)


@pytest.mark.parametrize("only_checked", [True, False])
@pytest.mark.parametrize(
    ("options", "error", "field"),
    [
        ({"beside": ["gone"]}, ReplacementNotFoundError, "beside[0]"),
        ({"beside": ["tc"]}, InvalidRequestError, "beside"),
        ({"beside": ["rival"]}, UnsupportedOptionError, "beside"),
        ({"beside": ["attn"], "layers": [0, 3]}, LayerOutOfRangeError, "layers[1]"),
        ({"layers": [2]}, LayerOutOfRangeError, "layers[0]"),
        ({"replacement": "neurons", "beside": ["tc"]}, InvalidRequestError, "replacement"),
    ],
)
async def test_sets_that_make_no_graph_are_refused_by_field(
    model: AsyncModel, options: dict[str, Any], error: type[TrephineError], field: str, only_checked: bool
):
    """Before an operation is made, or at its end: the same error with the same field."""
    given = {"target": " Mary", "replacement": "tc", "verify_nodes": 0} | options
    with pytest.raises(error) as refused:
        await (model.predict_discover if only_checked else model.discover)(PROMPT, **given)
    assert refused.value.field == field


async def test_it_is_verified(circuit: AsyncCircuit):
    """Ablations of all sets' features."""
    found = await circuit.verify(
        nodes=100, groups=2, depth_nodes=4, adversary_steps=1, bootstrap=100, random_circuits=20
    )
    assert {one.standing for one in found.given.comparisons} <= set(Standing) - {Standing.UNSPECIFIED}
    assert "attn" in found.given.replacement


async def test_attention_is_traced_through_several_sets(model: AsyncModel):
    """Every source says whose it is; a set that is not there is named by its field."""
    trace = await model.trace_attention(PROMPT, layer=2, head=0, top=200, **SETS)
    assert (trace.replacement, trace.beside) == ("tc", ("attn", "neurons"))
    sources = [term.source for term in (*trace.query_side, *trace.key_side)]
    of_sets = {source.replacement for source in sources if source.kind is StreamSourceKind.FEATURE}
    assert "attn" in of_sets
    assert not any(source.replacement for source in sources if source.kind is StreamSourceKind.ERROR)
    with pytest.raises(ReplacementNotFoundError) as refused:
        await model.trace_attention(PROMPT, layer=1, head=0, replacement="tc", beside=["gone"])
    assert refused.value.field == "beside[0]"
