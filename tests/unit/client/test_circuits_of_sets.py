"""Circuits over several sets in the clients: what is asked, how nodes are written, and what is printed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.fakes.grpc_server import FakeService
from tests.unit.client.test_cli import Run
from tests.unit.client.test_cli import run as run  # a fixture
from trephine.client import Trephine, aio
from trephine.client.cli.discover import layers_words
from trephine.client.cli.output import Output
from trephine.client.cli.progress import ProgressView
from trephine.client.cli.targets import wanted_target
from trephine.client.errors import InvalidRequestError
from trephine.client.types import FeatureValue, PartialCircuit, PartialNode
from trephine.v1 import circuit_queries_pb2 as queries
from trephine.v1 import circuit_service_pb2 as pb
from trephine.v1 import common_pb2 as common
from trephine.v1 import replacement_service_pb2 as sets

UUID = "11111111-1111-4111-8111-111111111111"


class CircuitsOfSets(FakeService):
    """Its circuit spans transcoders, attention's SAEs and neurons; two sets have a feature 0:5 at 0."""

    def _circuit(self) -> pb.Circuit:
        found = super()._circuit()
        found.replacement = "tc"
        for name, content in (("tc", "c" * 64), ("attn-sae", "a" * 64), ("neurons", "")):
            found.sets.add(name=name, content_hash=content)
        found.layers.extend([0, 1, 2, 5])
        return found

    def ListNodes(self, request: Any, context: Any) -> pb.ListNodesResponse:
        self._note(request, context)
        response = pb.ListNodesResponse()
        for index, (name, layer) in enumerate((("tc", 0), ("attn-sae", 0), ("neurons", 1))):
            feature = common.FeatureRef(replacement=name, layer=layer, index=5)
            response.nodes.add(index=index, kind=pb.NODE_KIND_FEATURE, layer=layer, feature=feature)
        response.nodes.add(index=3, kind=pb.NODE_KIND_LOGIT, layer=2, label=" Mary")
        return response

    def PinNodes(self, request: Any, context: Any) -> queries.CircuitAnnotations:
        self._note(request, context)
        pins = [queries.NodePin(node=node) for node in request.nodes]
        return queries.CircuitAnnotations(circuit=request.circuit, pins=pins)

    def DiffCircuits(self, request: Any, context: Any) -> pb.DiffCircuitsResponse:
        response = pb.DiffCircuitsResponse(n_nodes=1)
        feature = common.FeatureRef(replacement="attn-sae", layer=0, index=5)
        response.nodes.add(kind=pb.NODE_KIND_FEATURE, layer=0, position=0, feature=feature)
        return response


@pytest.fixture
def fake() -> FakeService:
    return CircuitsOfSets()


def sent(fake: FakeService, kind: type) -> Any:
    """The last request of a kind."""
    return [one for one in fake.requests if isinstance(one, kind)][-1]


def test_sets_beside_are_named_and_loaded_first(fake: FakeService, run: Run):
    """Neurons need no loading; layers open all sets."""
    words = ("discover", "Mary", "--target", " Mary", "--model", "tiny", "-r", "small")
    assert run(*words, "--beside", "other", "--beside", "neurons", "--layers", "0,2-3") == 0
    asked = sent(fake, pb.DiscoverCircuitRequest)
    opened = [one.source for one in fake.requests if isinstance(one, sets.LoadReplacementSetRequest)]
    assert opened == ["other"]
    # The set that is loaded is called `small` by this server, whatever its folder is.
    assert (asked.replacement, list(asked.beside), list(asked.layers)) == (
        "small", ["small", "neurons"], [0, 2, 3],
    )  # fmt: skip


def test_both_clients_send_the_same_and_tell_the_same(fake: FakeService, trephine: Trephine, address: str):
    """Sets by id or by name; what is known of a circuit's sets and layers comes back."""
    options: dict[str, Any] = {
        "target": FeatureValue(layer=0, index=5, replacement="attn-sae"),
        "replacement": "tc",
        "beside": ["models/tiny/replacements/attn-sae", "neurons"],
        "request_id": UUID,
    }
    circuit = trephine.model("tiny").start_discover("Mary", **options).result()
    first = sent(fake, pb.DiscoverCircuitRequest)
    assert list(first.beside) == ["attn-sae", "neurons"]
    assert first.target.feature.replacement == "attn-sae"

    async def ask() -> tuple[Any, tuple[int, ...]]:
        async with await aio.connect(address, token="secret") as client:
            found = await (await (await client.model("tiny")).start_discover("Mary", **options)).result()
            return found.info, await found.find("tc:0:5@0", "1:5@0")

    info, nodes = asyncio.run(ask())
    assert sent(fake, pb.DiscoverCircuitRequest) == first
    assert info == circuit.info
    assert info.beside == ("attn-sae", "neurons")
    assert [one.content_hash[:1] for one in info.sets] == ["c", "a", ""]
    assert info.layers == (0, 1, 2, 5)
    assert info.noun == "feature"
    assert nodes == circuit.find("tc:0:5@0", "1:5@0") == (0, 2)


def test_a_node_that_two_sets_have_needs_its_set(
    run: Run, fake: FakeService, capsys: pytest.CaptureFixture[str]
):
    """The error lists the candidates as they are written; what one set alone has needs none."""
    assert run("circuits", "pin", "c1", "0:5@0") == 2
    assert "in several sets; write tc:0:5@0 or attn-sae:0:5@0" in capsys.readouterr().err
    words = ("attn-sae:0:5@0", "1:5@0", "neurons:1:5@0", "target", "0")
    assert run("circuits", "pin", "c1", *words) == 0
    assert list(sent(fake, queries.PinNodesRequest).nodes) == [1, 2, 2, 3, 0]
    assert "pin\tattn-sae:0:5@0" in capsys.readouterr().out
    assert run("circuits", "pin", "c1", "other:0:5@0") == 2
    assert "has no node other:0:5@0" in capsys.readouterr().err


def test_lists_and_figures_name_every_set(run: Run, capsys: pytest.CaptureFixture[str]):
    """The circuit's own, of every node, and of what differs."""
    assert run("circuits", "list") == 0
    assert "\ttc, attn-sae, neurons\t" in capsys.readouterr().out
    assert run("circuits", "show", "c1") == 0
    shown = capsys.readouterr().out
    assert f"tc {'c' * 12}, attn-sae {'a' * 12}, neurons; layers 0-2, 5" in shown
    assert "FEATURE\tPOSITION" in shown
    assert run("circuits", "nodes", "c1") == 0
    written = capsys.readouterr().out
    assert all(text in written for text in ("tc:0:5@0", "attn-sae:0:5@0", "neurons:1:5@0"))
    assert run("circuits", "diff", "c1", "c2") == 0
    assert "attn-sae:0:5@0" in capsys.readouterr().out


def test_a_target_may_be_a_feature_of_any_set():
    """As features are written elsewhere."""
    nothing = dict.fromkeys(("tokens", "top_logits", "mass", "direction", "site", "attention", "positions"))
    found = wanted_target(**nothing, feature="attn-sae:24:311@-2")  # type: ignore[arg-type]
    assert found.target == FeatureValue(layer=24, index=311, replacement="attn-sae")
    assert found.positions == (-2,)
    with pytest.raises(InvalidRequestError, match="SET:"):
        wanted_target(**nothing, feature="attn/sae:24:311")  # type: ignore[arg-type]


@pytest.mark.parametrize(("layers", "words"), [((), ""), ((3,), "3"), ((0, 1, 2, 5, 7, 8), "0-2, 5, 7-8")])
def test_layers_are_printed_as_runs(layers: tuple[int, ...], words: str):
    """Neighbours together."""
    assert layers_words(layers) == words


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("tc", "attn-sae"), "strongest tc:0:5 @1, attn-sae:0:5 @1"),
        (("tc", "tc"), "strongest 0:5 @1, 0:5 @1"),
    ],
)
def test_a_growing_graph_names_sets_where_there_are_several(
    names: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
):
    """Two sets have a feature 0:5; the line that is shown meanwhile tells them apart."""
    nodes = tuple(
        PartialNode(layer=0, position=1, feature=5, influence=0.5, replacement=name) for name in names
    )
    graph = PartialCircuit(nodes=nodes, edges=(), inside=0.5, expanded=2)
    with ProgressView(Output(json=False), "discover") as view:
        view.partial(graph)
    assert told in capsys.readouterr().err
