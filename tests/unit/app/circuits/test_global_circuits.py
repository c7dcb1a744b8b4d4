"""Global circuits among stored ones: what serves them, what refuses them, what they will cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from math import isnan, nan
from typing import Any

import pytest

from tests.global_circuits import global_circuit
from tests.global_texts import request
from tests.unit.app.house import House, circuit, house, model_info, small_circuit
from tests.unit.app.sets.test_replacements import ignore, loaded
from trephine.app.circuits.circuit_explanations import CircuitExplanations, EdgeQuestion
from trephine.app.circuits.circuits import CircuitFormat
from trephine.app.circuits.global_circuits import GlobalCircuits
from trephine.app.jobs.costs import predict_beside
from trephine.app.jobs.requests import GlobalCircuitRequest, VerifyRequest
from trephine.domain.circuit_queries import Around, Between, NodeFilter, Pruning
from trephine.domain.circuits import Circuit
from trephine.domain.errors import (
    InvalidRequestError,
    LayerOutOfRangeError,
    ReplacementNotFoundError,
    UnsupportedOptionError,
)
from trephine.domain.global_circuits import DiscoverGlobalCircuit, GlobalBounds

INFO = replace(
    model_info("tiny"),
    n_layers=30,
    d_model=576,
    d_mlp=1536,
    n_heads=9,
    d_vocab=49_152,
    n_parameters=135_000_000,
)


async def test_it_is_read_back_with_its_figures(tmp_path):
    """By the next server; a circuit of a prompt has none."""
    await house(tmp_path).circuits.save(global_circuit(), circuit_id="g1")
    await house(tmp_path).circuits.save(small_circuit(), circuit_id="c1")
    again = house(tmp_path).circuits
    assert repr((await again.get("g1")).circuit) == repr(global_circuit())
    assert (await again.get("c1")).circuit.across is None


async def test_nodes_edges_and_parts_are_served(tmp_path):
    """As of any circuit."""
    here = house(tmp_path)
    stored = await here.circuits.save(global_circuit(), circuit_id="g1")
    assert [one.index for one in await here.circuit_views.nodes(stored, NodeFilter())] == [0, 1, 2, 3]
    assert [edge.weight for edge in here.circuits.edges(stored)] == [-2.0, 0.5, 0.25]
    _, around = await here.circuit_views.subgraph("g1", Around(node=1))
    assert around.nodes.tolist() == [0, 1, 3]
    _, between = await here.circuit_views.subgraph("g1", Between(source=2, target=3))
    assert between.n_paths == 1


@pytest.mark.parametrize("format", ["json", "html", "graphml"])
async def test_files_show_all_of_it(tmp_path, format: CircuitFormat):
    """Unless a share is named: of all edges' strength, which is what a node's influence is."""
    here = house(tmp_path)
    await here.circuits.save(global_circuit(), circuit_id="g1")
    info, kept = await here.circuits.render("g1", format)
    assert (len(kept.nodes), len(kept.edges)) == (4, 3)
    data = await here.artifacts.read(info.sha256)
    if format == "json":
        document = json.loads(data)
        assert document["metadata"]["info"]["across"]["training"] == 30
        assert document["metadata"]["prompt_tokens"] == ["every position"]
        assert {node["ctx_idx"] for node in document["nodes"]} == {0}
        cumulative = {node["node_id"]: node["influence"] for node in document["nodes"]}
        assert list(cumulative.values()) == pytest.approx([0.5, 0.8, 0.9, 1.0])
    _, cut = await here.circuits.render("g1", format, node_threshold=0.7)
    assert (cut.nodes, cut.edges) == ((0, 1), (1,))


async def test_what_needs_a_prompt_is_refused(tmp_path):
    """Verification, edges over heads: in words, naming the circuit."""
    here = house(tmp_path)
    await here.circuits.save(global_circuit(), circuit_id="g1")
    explanations = CircuitExplanations(here.circuits, here.models)
    for refused in (
        here.circuit_verifications.check(VerifyRequest(circuit="g1")),
        explanations.edges(EdgeQuestion(circuit="g1", edges=((0, 1),))),
    ):
        with pytest.raises(UnsupportedOptionError, match="30 texts") as caught:
            await refused
        assert caught.value.context["field"] == "circuit"


async def test_it_is_pruned_by_its_own_influence(tmp_path):
    """Without a target to lead to; what loses its last edge goes, with the logit that it stood for."""
    here = house(tmp_path)
    await here.circuits.save(global_circuit(), circuit_id="g1")
    smaller = await here.circuit_views.prune("g1", Pruning(node_threshold=0.7, edge_threshold=1.0))
    assert [node.label for node in smaller.circuit.nodes] == [
        node.label for node in global_circuit().nodes[:2]
    ]
    assert [edge.weight for edge in here.circuits.edges(smaller)] == [-2.0]
    assert (smaller.circuit.targets, smaller.circuit.across) == ((), global_circuit().across)
    assert (smaller.provenance.origin, smaller.provenance.parent) == ("pruned", "circuits/g1")
    formats: tuple[CircuitFormat, ...] = ("json", "html", "graphml")
    for format in formats:
        _, kept = await here.circuits.render(smaller.name, format)
        assert (len(kept.nodes), len(kept.edges)) == (2, 1)


async def test_pins_and_budgets_hold_for_global_circuits(tmp_path):
    """A pinned logit stays with its target; of two features the stronger one is within the budget."""
    here = house(tmp_path)
    await here.circuits.save(global_circuit(), circuit_id="g1")
    pinned = await here.circuit_views.kept("g1", Pruning(node_threshold=0.7, keep=(3,)))
    assert (pinned.nodes, pinned.edges) == ((0, 1, 3), (1, 2))
    few = await here.circuit_views.kept("g1", Pruning(node_threshold=1.0, edge_threshold=1.0, max_nodes=1))
    assert (few.nodes, few.edges) == ((0, 2), (0,))
    one = await here.circuit_views.kept("g1", Pruning(node_threshold=1.0, edge_threshold=1.0, max_edges=1))
    assert (one.nodes, one.edges) == ((0, 2), (0,))


async def test_sets_and_layers_that_there_are_not(tmp_path):
    """Before an operation is made of it."""
    here = await loaded(tmp_path)
    circuits = GlobalCircuits(here.circuits, models=here.models, replacements=here.replacements)
    asked = GlobalCircuitRequest(model="tiny", command=request(replacement="nobody"))
    with pytest.raises(ReplacementNotFoundError) as refused:
        await circuits.check(asked)
    assert refused.value.context["field"] == "replacement"
    with pytest.raises(LayerOutOfRangeError) as refused:
        await circuits.check(GlobalCircuitRequest(model="tiny", command=request(layers=(0, 9))))
    assert refused.value.context["field"] == "layers[1]"


async def test_what_is_stored_is_not_found_again(tmp_path):
    """A second run of the same operation returns what the first one published."""
    here = await loaded(tmp_path)
    seen: list[Any] = []
    here.launcher.scripts[DiscoverGlobalCircuit] = lambda command: seen.append(command) or global_circuit()
    circuits = GlobalCircuits(here.circuits, models=here.models, replacements=here.replacements)
    asked = GlobalCircuitRequest(model="tiny", command=request())
    first = await circuits.run(asked, ignore, circuit_id="op1")
    second = await circuits.run(asked, ignore, circuit_id="op1")
    assert first == second
    assert first.name == "circuits/op1"
    assert len(seen) == 1


def cost(**changes: Any) -> Any:
    """Predicted for a model of SmolLM2's size."""
    return predict_beside(request(**changes), INFO, {})


def test_memory_grows_with_the_square_of_candidates_and_not_with_texts():
    """Sums over all pairs are held, of both halves; texts pass by."""
    few, many = (cost(bounds={"candidates": number, "nodes": 2}).memory_bytes for number in (1024, 8192))
    assert many - few > 4 * 4 * (8192**2 - 1024**2)
    assert cost(count=800).memory_bytes == cost(count=400).memory_bytes > cost(count=40).memory_bytes
    assert cost(count=400).tokens > 5 * cost(count=40, verify_edges=0).tokens


def test_time_counts_passes_products_and_ablations():
    """Without ablations it is shorter; of more candidates longer; a text counts as far as it is read."""
    assert cost(verify_edges=0).tokens < cost().tokens < cost(verify_edges=256).tokens
    wide = GlobalBounds(candidates=8192, nodes=2)
    assert predict_beside(replace(request(), bounds=wide), INFO, {}).tokens > cost().tokens
    long = replace(request(verify_edges=0), training=("word " * 5000, "word " * 6000))
    short = replace(long, context_tokens=8)
    assert predict_beside(short, INFO, {}).tokens < predict_beside(long, INFO, {}).tokens


async def _sent(
    here: House, circuit: Circuit, change: Callable[[dict[str, Any]], None] | None = None
) -> Circuit:
    """Export a circuit as JSON, change what the file says of it, and import the file."""
    await here.circuits.save(circuit, circuit_id="g1")
    info, _ = await here.circuits.render("g1", "json")
    document = json.loads(await here.artifacts.read(info.sha256), parse_constant=_no_constant)
    if change is not None:
        change(document["metadata"]["info"])
    file = await here.artifacts.put(json.dumps(document).encode(), media_type="application/json")
    return (await here.circuit_views.import_graph(file.sha256)).circuit


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


async def test_a_file_brings_its_figures_back(tmp_path):
    """What was measured, every node's share, and that its one token stands for all positions."""
    graph, here = global_circuit(), house(tmp_path)
    again = await _sent(here, graph)
    assert again.across == graph.across
    assert [node.influence for node in again.nodes] == [node.influence for node in graph.nodes]
    assert (again.prompt, again.tokens, again.edge_rule) == ("", graph.tokens, "twera")
    assert again.caveats[0].endswith("figures and influences are the file's.")
    stored = next(one for one in await here.circuits.list() if one.provenance.origin == "imported")
    with pytest.raises(UnsupportedOptionError):
        await here.circuit_verifications.check(VerifyRequest(circuit=stored.name))
    smaller = await here.circuit_views.prune(stored.name, Pruning(node_threshold=0.7, edge_threshold=1.0))
    assert (len(smaller.circuit.nodes), smaller.circuit.across) == (2, graph.across)


async def test_a_file_of_one_without_a_target_comes_back(tmp_path):
    """Pruned ones may have none, and a figure may be no number; a circuit of a prompt needs a target."""
    graph = global_circuit()
    measured = replace(graph.across, coverage=replace(graph.across.coverage, value=nan, low=nan, high=nan))
    edges = circuit([*graph.nodes[:2]], [(0, 1, -2.0)]).edges
    smaller = replace(graph, nodes=graph.nodes[:2], edges=edges, targets=(), across=measured)
    again = await _sent(house(tmp_path), smaller)
    assert len(again.nodes) == 2
    assert isnan(again.across.coverage.value)
    assert again.across.coverage.low is None
    assert replace(again.across, coverage=None) == replace(measured, coverage=None)
    with pytest.raises(InvalidRequestError, match="has no target"):
        await _sent(house(tmp_path / "plain"), smaller, lambda info: info.update(across=None))


async def test_files_of_before_are_read(tmp_path):
    """With figures and no shares, these follow from the edges; without figures it is a circuit as any."""
    with_figures = await _sent(house(tmp_path / "a"), global_circuit(), lambda info: info.pop("influences"))
    assert with_figures.across == global_circuit().across
    assert with_figures.caveats[0].endswith("influences follow from its edges.")
    neither = await _sent(house(tmp_path / "b"), global_circuit(), lambda info: info.update(across=None))
    assert neither.across is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda info: info["across"].update(training="many"), "training: Input should be a valid integer"),
        (lambda info: info["across"].update(weighting="mean"), "weighting"),
        (lambda info: info.update(influences=[1, 2]), "valid dictionary"),
        (lambda info: info["influences"].update({"0_0_0": -1.0}), "shares are numbers from 0 to 1"),
    ],
)  # fmt: skip
async def test_a_file_that_says_something_else_is_refused(tmp_path, change, said):
    """In words that name the place."""
    with pytest.raises(InvalidRequestError, match=said):
        await _sent(house(tmp_path), global_circuit(), change)
