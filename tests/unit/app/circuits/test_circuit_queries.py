"""Subgraphs, filters and pruned views of stored circuits, against brute force."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from tests.layered_circuits import layered
from tests.unit.app.house import House, circuit, house, node
from trephine.app.circuits.circuit_pruning import kept_nodes
from trephine.app.circuits.circuit_queries import Wiring, influence_of, query
from trephine.app.circuits.pruning import numbers
from trephine.domain.circuit_queries import (
    Around,
    Between,
    CircuitFilter,
    NodeFilter,
    NodeSort,
    Provenance,
    Pruning,
)
from trephine.domain.circuits import Circuit, NodeKind
from trephine.domain.errors import (
    CorruptRecordError,
    InvalidRequestError,
    NothingMatchedError,
    ResourceNotFoundError,
)


def edges_of(graph: Circuit) -> list[tuple[int, int, float]]:
    """Edges as tuples."""
    columns = (graph.edges.source, graph.edges.target, graph.edges.weight)
    return list(zip(*(numbers(one).tolist() for one in columns), strict=True))


def all_paths(graph: Circuit, source: int, target: int) -> list[tuple[list[int], list[float], float]]:
    """Every path with its weights and its signed share, by recursion."""
    out, entering = defaultdict(list), defaultdict(float)
    for start, end, weight in edges_of(graph):
        out[start].append((end, weight))
        entering[end] += abs(weight)
    found = []

    def walk(nodes: list[int], weights: list[float], share: float) -> None:
        if nodes[-1] == target:
            found.append((nodes, weights, share))
            return
        for end, weight in out[nodes[-1]]:
            walk([*nodes, end], [*weights, weight], share * weight / entering[end])

    walk([source], [], 1.0)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_paths_between_two_nodes_are_those_of_brute_force(seed):
    """The k strongest, their order, their number, and both sums equal an enumeration of every path."""
    graph = layered(seed)
    source, target = len(graph.nodes) - 3, len(graph.nodes) - 1
    expected = sorted(all_paths(graph, source, target), key=lambda path: -abs(path[2]))
    found = query(graph, Between(source=source, target=target, paths=7))
    assert found.n_paths == len(expected) > 7
    assert found.share == pytest.approx(sum(path[2] for path in expected))
    assert found.absolute_share == pytest.approx(sum(abs(path[2]) for path in expected))
    assert [path.share for path in found.paths] == pytest.approx([path[2] for path in expected[:7]])
    assert [list(path.nodes) for path in found.paths] == [path[0] for path in expected[:7]]
    assert set(found.nodes.tolist()) == {one for path in expected for one in path[0]}


@pytest.mark.parametrize("seed", range(3))
def test_contributions_of_all_paths_are_what_is_gone_without_the_source(seed):
    """Each node falls by what enters it, and passes on that share of its activation, whatever rows sum to."""
    graph = layered(seed, layers=2)
    source, last = 0, len(graph.nodes) - 1
    fallen = dict.fromkeys(range(len(graph.nodes)), 0.0) | {source: graph.nodes[source].activation}
    for start, end, weight in sorted(edges_of(graph), key=lambda edge: (graph.nodes[edge[1]].layer, edge[1])):
        if fallen[start]:
            fallen[end] += weight * fallen[start] / graph.nodes[start].activation
    found = query(graph, Between(source=source, target=last, paths=100))
    assert found.n_paths == len(found.paths) > 1
    assert sum(path.contribution for path in found.paths) == pytest.approx(fallen[last])


def test_a_part_that_is_cut_keeps_what_was_asked_about():
    """The most influential nodes beside them, and the edges between; equals in order of their index."""
    graph = layered(2)
    weakest = min(
        (node for node, one in enumerate(graph.nodes) if one.kind is NodeKind.FEATURE and one.layer == 1),
        key=lambda node: graph.nodes[node].influence,
    )
    last, by_influence = len(graph.nodes) - 1, lambda node: (-graph.nodes[node].influence, node)
    for question, asked in (
        (Around(node=weakest, ancestors=9, descendants=9), {weakest}),
        (Between(source=weakest, target=last), {weakest, last}),
    ):
        part = query(graph, question)
        for count in (1, 4):
            nodes, edges = part.largest(graph, count)
            others = sorted(set(part.nodes.tolist()) - asked, key=by_influence)
            assert set(nodes.tolist()) == asked | set(others[: max(0, count - len(asked))])
            ends = [edges_of(graph)[edge] for edge in edges.tolist()]
            assert all({start, end} <= set(nodes.tolist()) for start, end, _ in ends)


def test_a_path_through_an_unknown_activation_has_no_contribution():
    """Imported circuits need not say what a feature's activation is; a straight path needs none."""
    graph = layered(1, layers=2)
    unknown = tuple(
        replace(one, activation=float("nan")) if one.kind is NodeKind.FEATURE else one for one in graph.nodes
    )
    found = query(
        replace(graph, nodes=unknown), Between(source=len(graph.nodes) - 2, target=len(graph.nodes) - 1)
    )
    assert {path.contribution is None for path in found.paths} == {
        len(path.nodes) > 2 for path in found.paths
    }


@pytest.mark.parametrize(("up", "down"), [(1, 0), (0, 1), (1, 1), (2, 3), (99, 99)])
def test_subgraph_around_a_node_is_that_of_breadth_first_search(up, down):
    """Nodes within so many steps above and below, and the edges of walks of so many steps alone."""
    graph, centre = layered(2), 8

    def reached(steps: int, pairs: list[tuple[int, int]]) -> set[int]:
        seen = {centre}
        for _ in range(steps):
            seen |= {end for start, end in pairs if start in seen}
        return seen

    pairs = [(start, end) for start, end, _ in edges_of(graph)]
    above, below = reached(up, [(end, start) for start, end in pairs]), reached(down, pairs)
    found = query(graph, Around(node=centre, ancestors=up, descendants=down))
    assert set(found.nodes.tolist()) == above | below
    enter = reached(up - 1, [(end, start) for start, end in pairs]) if up else set()
    leave = reached(down - 1, pairs) if down else set()
    assert set(found.edges.tolist()) == {
        place for place, (start, end) in enumerate(pairs) if end in enter or start in leave
    }


def test_one_step_around_a_node_is_its_own_edges():
    """Edges among its neighbours, of which there are many more, are no step to or from it."""
    graph, centre = layered(2), 8
    found = query(graph, Around(node=centre))
    ends = [edges_of(graph)[place][:2] for place in found.edges.tolist()]
    assert len(ends) == sum(centre in edge[:2] for edge in edges_of(graph))
    assert all(centre in pair for pair in ends)


def test_light_edges_are_not_followed():
    """min_weight holds for every edge of every path."""
    graph, last = layered(3), len(layered(3).nodes) - 1
    heavy = query(graph, Between(source=last - 1, target=last, min_weight=0.3))
    every = query(graph, Between(source=last - 1, target=last))
    assert 0 < heavy.n_paths < every.n_paths
    assert np.abs(numbers(graph.edges.weight)[heavy.edges]).min() >= 0.3


def test_what_is_not_connected_is_an_error_that_says_why():
    """No path at all, only backwards, only over lighter edges: three different sentences."""
    graph = circuit([node(NodeKind.FEATURE), node(NodeKind.FEATURE), node(NodeKind.LOGIT)], [(0, 2, 0.5)])
    with pytest.raises(NothingMatchedError, match=r"from node 1 .* to node 2"):
        query(graph, Between(source=1, target=2))
    with pytest.raises(NothingMatchedError, match="the other way round"):
        query(graph, Between(source=2, target=0))
    with pytest.raises(NothingMatchedError, match="a smaller min_weight finds one"):
        query(graph, Between(source=0, target=2, min_weight=1))
    with pytest.raises(NothingMatchedError, match="no kept edge"):
        query(graph, Around(node=1))
    with pytest.raises(NothingMatchedError, match=r"the heaviest has 0\.5"):
        query(graph, Around(node=0, min_weight=1))


@pytest.mark.parametrize(
    ("question", "field"),
    [
        (Around(node=99), "around.node"),
        (Around(node=0, ancestors=-1), "around.ancestors"),
        (Around(node=0, ancestors=0, descendants=0), "around.ancestors"),
        (Around(node=0, min_weight=float("nan")), "min_weight"),
        (Between(source=0, target=0), "between.target"),
        (Between(source=-1, target=0), "between.source"),
        (Between(source=0, target=1, paths=101), "between.paths"),
    ],
)
def test_what_cannot_be_asked_is_refused_by_field(question, field):
    """Every refusal names the field."""
    with pytest.raises(InvalidRequestError) as refused:
        query(layered(), question)
    assert refused.value.context["field"] == field


def test_a_cycle_is_a_corrupt_record():
    """Levels do not exist in a cycle; the query ends all the same."""
    nodes = [node(NodeKind.FEATURE), node(NodeKind.FEATURE), node(NodeKind.LOGIT)]
    with pytest.raises(CorruptRecordError, match="cycle"):
        query(circuit(nodes, [(0, 1, 1.0), (1, 0, 1.0), (1, 2, 1.0)]), Between(source=0, target=2))


def test_influence_is_the_sum_over_all_paths():
    """What a node sends to the target is the sum of the absolute shares of all its paths."""
    graph = layered(4)
    last, influence = len(graph.nodes) - 1, influence_of(Wiring(graph))
    for source in (0, 7, last - 1):
        expected = sum(abs(share) for _, _, share in all_paths(graph, source, last))
        assert influence[source] == pytest.approx(expected)


async def saved(here: House, graph: Circuit) -> str:
    """A stored circuit's name."""
    return (await here.circuits.save(graph, circuit_id="c1")).name


@pytest.mark.parametrize("form", ["json", "html", "graphml"])
async def test_a_part_is_written_whole_unless_thresholds_are_said(tmp_path, form):
    """What was pruned, when it was found or later, was cut already; thresholds of 1 are everything."""
    here = house(tmp_path)
    parent = await saved(here, layered(5))
    pruned = await here.circuit_views.prune(parent, Pruning(node_threshold=0.9, max_edges=12))
    at_once = await here.circuits.save(pruned.circuit, circuit_id="c2", provenance=Provenance(how="cut"))
    nodes, edges = len(pruned.circuit.nodes), pruned.circuit.edges.weight.shape[0]
    for part in (pruned.name, at_once.name):
        _, kept = await here.circuits.render(part, form)
        assert (len(kept.nodes), len(kept.edges)) == (nodes, edges)
        _, kept = await here.circuits.render(part, form, 0.8, 0.98)
        assert (len(kept.nodes), len(kept.edges)) < (nodes, edges)
    whole = layered(5)
    _, kept = await here.circuits.render(parent, form)
    assert len(kept.nodes) < len(whole.nodes)
    _, kept = await here.circuits.render(parent, form, 1.0, 1.0)
    assert (len(kept.nodes), len(kept.edges)) == (len(whole.nodes), whole.edges.weight.shape[0])


async def test_pruned_circuit_is_stored_with_its_parent_and_its_rows_still_sum(tmp_path):
    """A view has its own name, says where it came from, and what was dropped is in the remainder (law 3)."""
    here = house(tmp_path)
    parent = await saved(here, layered(5))
    pruned = await here.circuit_views.prune(parent, Pruning(node_threshold=0.5, edge_threshold=0.9))
    again = await here.circuit_views.prune(parent, Pruning(node_threshold=0.5, edge_threshold=0.9))
    assert again.name == pruned.name != parent
    assert pruned.provenance.origin == "pruned"
    assert pruned.provenance.parent == parent
    assert "node threshold 0.5" in pruned.provenance.how
    said = pruned.circuit.caveats[-1]
    assert said.startswith(f"Pruned from {parent} (node threshold 0.5")
    assert f"{len(pruned.circuit.nodes)} of {len(layered(5).nodes)} nodes" in said
    assert "figures and scores are those of the whole graph" in said
    small, rows = pruned.circuit, pruned.circuit.rows
    assert len(small.nodes) < len(layered(5).nodes)
    entering = np.zeros(len(small.nodes))
    np.add.at(entering, numbers(small.edges.target), numbers(small.edges.weight))
    sums = entering[numbers(rows.target)] + numbers(rows.bias) + numbers(rows.remainder)
    assert sums == pytest.approx(numbers(rows.total), abs=1e-5)  # fp32 storage of three summands
    assert [one.name for one in await here.circuits.list(CircuitFilter(parent=parent))] == [pruned.name]


async def test_the_same_question_at_once_is_answered_by_one_circuit(tmp_path):
    """Two calls that prune alike at the same time publish one folder, and both succeed."""
    here = house(tmp_path)
    parent = await saved(here, layered(5))
    bounds = Pruning(node_threshold=0.5)
    several = await asyncio.gather(*(here.circuit_views.prune(parent, bounds) for _ in range(4)))
    assert len({one.name for one in several}) == 1
    assert len(await here.circuits.list()) == 2


async def test_pinned_nodes_survive_any_pruning_with_their_edges(tmp_path):
    """A pinned node that the thresholds would drop is there, in the view and in every export."""
    here = house(tmp_path)
    parent = await saved(here, layered(6))
    bounds = Pruning(node_threshold=0.3, edge_threshold=0.5)
    dropped = set(range(20)) - set((await here.circuit_views.kept(parent, bounds)).nodes)
    pin = min(dropped)
    await here.circuit_annotations.pin(parent, [pin], "ann")
    kept = await here.circuit_views.kept(parent, bounds)
    assert pin in kept.nodes
    touching = [edge for edge in kept.edges if pin in edges_of(layered(6))[edge][:2]]
    assert touching
    view = await here.circuit_views.prune(parent, bounds)
    said = await here.circuits.annotations(view.name)
    assert [view.circuit.nodes[one].label for one in said.pinned] == [layered(6).nodes[pin].label]


def test_budget_keeps_the_most_influential():
    """At most so many features and errors; tokens, targets and pins come on top."""
    graph = layered(7)
    kept = kept_nodes(graph, Pruning(node_threshold=1, edge_threshold=1, max_nodes=4), frozenset())
    prunable = [one for one in kept.nodes if graph.nodes[one].kind in (NodeKind.FEATURE, NodeKind.ERROR)]
    everything = kept_nodes(graph, Pruning(node_threshold=1, edge_threshold=1), frozenset()).nodes
    best = sorted(set(range(24)) & set(everything), key=lambda one: (-graph.nodes[one].influence, one))[:4]
    assert prunable
    assert set(prunable) <= set(best)
    every = {one for edge in kept.edges for one in edges_of(graph)[edge][:2]}
    assert every <= set(kept.nodes)


def test_a_budget_leaves_nothing_dangling():
    """What leads nowhere once a node is cut by budget goes too; pinned, it stays."""
    nodes = [
        node(NodeKind.FEATURE, layer=0, influence=0.9),
        node(NodeKind.FEATURE, layer=1, influence=0.1),
        node(NodeKind.FEATURE, layer=1, influence=0.8),
        node(NodeKind.TOKEN, influence=0.5),
        node(NodeKind.LOGIT, activation=1.0),
    ]
    graph = circuit(nodes, [(3, 0, 1.0), (0, 1, 1.0), (3, 2, 1.0), (1, 4, 1.0), (2, 4, 1.0)])
    bounds = Pruning(node_threshold=1, edge_threshold=1, max_nodes=2)
    assert kept_nodes(graph, bounds, frozenset()).nodes == (2, 3, 4)
    assert kept_nodes(graph, bounds, frozenset({0})).nodes == (0, 2, 3, 4)


async def test_nodes_are_filtered_and_ordered(tmp_path):
    """Layer, position, token and pin filters, and every order."""
    here, graph = house(tmp_path), layered(8)
    stored = await here.circuits.get(await saved(here, graph))
    await here.circuit_annotations.pin(stored.name, [3], "")

    async def indices(**wanted: object) -> list[int]:
        return [one.index for one in await here.circuit_views.nodes(stored, NodeFilter(**wanted))]

    chosen = await indices(layers=frozenset({1, 2}), positions=frozenset({2}), order=NodeSort.INDEX)
    assert chosen == [i for i, n in enumerate(graph.nodes) if n.layer in (1, 2) and n.position == 2]
    assert await indices(pinned=True) == [3]
    assert set(await indices(token="W1")) == {i for i, n in enumerate(graph.nodes) if n.position == 1}
    by_activation = await indices(kind=NodeKind.FEATURE, order=NodeSort.ACTIVATION)
    assert by_activation == sorted(range(20), key=lambda i: -graph.nodes[i].activation)


async def test_circuits_are_filtered_and_deleted(tmp_path):
    """By model and a part of the prompt; what is deleted is gone from disk, too."""
    here = house(tmp_path)
    name = await saved(here, layered())
    assert [one.name for one in await here.circuits.list(CircuitFilter(model="tiny", prompt="W0W1"))] == [
        name
    ]
    for other in (CircuitFilter(model="big"), CircuitFilter(prompt="x"), CircuitFilter(replacement="sae")):
        assert await here.circuits.list(other) == ()
    await here.circuits.delete(name)
    assert list((tmp_path / "state" / "circuits").iterdir()) == []
    for gone in (here.circuits.delete, here.circuits.get):
        with pytest.raises(ResourceNotFoundError):
            await gone(name)
