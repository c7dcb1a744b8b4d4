"""Storing, paging, pruning and rendering circuits."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from math import isnan

import numpy as np
import pytest
from structlog.testing import capture_logs

from tests.file_limits import files_end_at
from tests.unit.app.house import circuit, house, node, small_circuit
from trephine.app.circuits import circuits as circuits_module
from trephine.app.circuits.pruning import prune
from trephine.app.storage.records import decode
from trephine.domain.circuits import Circuit, EstimateQuality, NodeKind
from trephine.domain.errors import (
    CorruptRecordError,
    DiskFullError,
    InvalidRequestError,
    ResourceNotFoundError,
)


async def test_circuit_is_read_back_by_the_next_server(tmp_path):
    """Every field survives, raw token bytes, NaN and numbers included."""
    stored = await house(tmp_path).circuits.save(small_circuit(), circuit_id="c1")
    again = await house(tmp_path).circuits.get("circuits/c1")
    assert again.name == stored.name == "circuits/c1"
    assert repr(again.circuit) == repr(small_circuit())


def test_quality_stored_before_edges_were_measured_is_read():
    """A circuit of an earlier version stays readable: what it lacks is no number."""
    plain = {"slope": 0.9, "slope_low": 0.8, "slope_high": 1.0}
    plain |= {"spearman": 0.7, "spearman_low": 0.6, "spearman_high": 0.8}
    stored = json.dumps(plain | {"nodes": 100, "how": "", "predicted": [1.0], "measured": [0.9]})
    quality = decode(EstimateQuality, stored.encode(), what="quality")
    assert quality.slope == 0.9
    assert isnan(quality.edge_slope)
    assert isnan(quality.edge_spearman_high)


async def test_a_circuit_that_was_stored_before_sets_were_recorded_is_read(tmp_path):
    """It stays readable, and which set it was found with is not known."""
    whole = replace(small_circuit(), replacement="sae", set_hash="c" * 64, layers=(0, 2))
    await house(tmp_path).circuits.save(whole, circuit_id="c1")
    known = (await house(tmp_path).circuits.get("c1")).circuit
    assert (known.set_hash, known.layers) == ("c" * 64, (0, 2))
    file = tmp_path / "state" / "circuits" / "c1" / "circuit.json"
    header = json.loads(file.read_bytes())
    del header["circuit"]["set_hash"], header["circuit"]["layers"]
    file.write_text(json.dumps(header))
    old = (await house(tmp_path).circuits.get("c1")).circuit
    assert old.set_is_unknown
    assert old.layers is None


async def test_errors_that_were_stored_without_their_site_are_told_apart_by_their_labels(tmp_path):
    """Two error nodes of one layer and position had one address; reading gives each its own."""
    names = ("MLP 1 (not covered)", "error of attn_out 1", "error of mlp_out 1", "error of attn_out 2")
    errors = [replace(node(NodeKind.ERROR, layer=1), feature=-1, label=f"{n} at 'x'") for n in names]
    await house(tmp_path).circuits.save(circuit([*errors, node(NodeKind.LOGIT)], []), circuit_id="c1")
    read = (await house(tmp_path).circuits.get("c1")).circuit
    assert [one.feature for one in read.nodes[:4]] == [-1, -2, -1, -1]


async def test_saving_again_changes_nothing(tmp_path):
    """A rerun of the operation that found it publishes nothing twice."""
    circuits = house(tmp_path).circuits
    first = await circuits.save(small_circuit(), circuit_id="c1")
    other = circuit([node(NodeKind.LOGIT)], [])
    assert await circuits.save(other, circuit_id="c1") == first
    assert [path.name for path in (tmp_path / "state" / "circuits").iterdir()] == ["c1"]


async def test_a_full_disk_keeps_nothing_and_says_so(tmp_path):
    """It was an internal error after minutes of discovery: safetensors raises an error of its own."""
    circuits = house(tmp_path).circuits
    with files_end_at(100), pytest.raises(DiskFullError, match="no room for a circuit"):
        await circuits.save(small_circuit(), circuit_id="c1")
    assert list((tmp_path / "state" / "circuits").iterdir()) == []


async def test_unknown_and_damaged_circuits_are_told_apart(tmp_path):
    """No circuit is not found; one whose numbers are cut off is corrupt."""
    await house(tmp_path).circuits.save(small_circuit(), circuit_id="c1")
    with pytest.raises(ResourceNotFoundError):
        await house(tmp_path).circuits.get("c2")
    file = tmp_path / "state" / "circuits" / "c1" / "numbers.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(CorruptRecordError):
        await house(tmp_path).circuits.get("c1")


async def test_circuits_are_listed_newest_first(tmp_path):
    """The list is in order of creation, newest first."""
    here = house(tmp_path)
    for name in ("b", "a", "c"):
        await here.circuits.save(small_circuit(), circuit_id=name)
        await here.clock.advance(1)
    assert [stored.name for stored in await here.circuits.list()] == [
        "circuits/c",
        "circuits/a",
        "circuits/b",
    ]


async def test_one_corrupt_circuit_does_not_hide_the_others(tmp_path):
    """Listing skips, and logs, what cannot be read; reading it says why."""
    here = house(tmp_path)
    for name in ("a", "b", "c"):
        await here.circuits.save(small_circuit(), circuit_id=name)
    folder = tmp_path / "state" / "circuits"
    (folder / "b" / "numbers.safetensors").write_bytes(b"xx")
    (folder / "c" / "circuit.json").write_text("{")
    again = house(tmp_path).circuits
    with capture_logs() as logged:
        assert [stored.name for stored in await again.list()] == ["circuits/a"]
    assert {(line["event"], line["record"]) for line in logged} == {
        ("corrupt_record", "b"),
        ("corrupt_record", "c"),
    }
    with pytest.raises(CorruptRecordError):
        await again.get("b")


async def test_a_circuit_that_is_deleted_while_it_is_read_stays_deleted(tmp_path, monkeypatch):
    """Whenever the read ends, before or after the rename or in between: nothing serves it afterwards."""
    read = circuits_module._read

    for place, moment in enumerate(("before", "after")):
        here = house(tmp_path).circuits
        await here.save(small_circuit(), circuit_id=f"c{place}")
        here = house(tmp_path).circuits  # has nothing open
        reached, go = threading.Event(), threading.Event()

        def held(folder, moment=moment, reached=reached, go=go):
            found = read(folder) if moment == "after" else None
            reached.set()
            go.wait()
            return found or read(folder)

        monkeypatch.setattr(circuits_module, "_read", held)
        reading = asyncio.create_task(here.get(f"c{place}"))
        await asyncio.to_thread(reached.wait)
        await here.delete(f"c{place}")
        go.set()
        with pytest.raises(ResourceNotFoundError):
            await reading
        monkeypatch.setattr(circuits_module, "_read", read)
        with pytest.raises(ResourceNotFoundError):
            await here.get(f"c{place}")


async def test_listing_goes_on_while_circuits_are_deleted(tmp_path):
    """What goes meanwhile is left out, and of two deletions one finds nothing."""
    names = [f"c{number}" for number in range(12)]
    for name in names:
        await house(tmp_path).circuits.save(small_circuit(), circuit_id=name)
    here = house(tmp_path).circuits
    listed, *_ = await asyncio.gather(here.list(), *(here.delete(name) for name in names[::2]))
    assert {stored.name for stored in listed} >= {f"circuits/{name}" for name in names[1::2]}
    assert {stored.name for stored in await here.list()} == {f"circuits/{name}" for name in names[1::2]}
    twice = await asyncio.gather(here.delete("c1"), here.delete("c1"), return_exceptions=True)
    assert [type(one) for one in twice] == [type(None), ResourceNotFoundError]


async def test_nodes_come_by_influence_with_what_enters_them(tmp_path):
    """Filters work, and target rows carry bias, remainder and total."""
    circuits = house(tmp_path).circuits
    stored = await circuits.save(small_circuit())
    assert [listed.index for listed in circuits.nodes(stored)] == [0, 2, 1, 3]
    assert [listed.index for listed in circuits.nodes(stored, NodeKind.ERROR)] == [1]
    assert [listed.index for listed in circuits.nodes(stored, min_influence=0.5)] == [0, 2]
    feature, token = circuits.nodes(stored)[:2]
    assert (feature.total, feature.bias, feature.remainder) == (2.0, 0.5, 0.25)
    assert token.total is None


async def test_edges_come_by_absolute_weight(tmp_path):
    """Heaviest first, filtered by end points and weight, as a sequence that slices."""
    circuits = house(tmp_path).circuits
    stored = await circuits.save(small_circuit())
    edges = circuits.edges(stored)
    assert [(edge.source, edge.target, edge.weight) for edge in edges[:9]] == [
        (0, 3, 2),
        (2, 0, 1),
        (1, 3, -1),
    ]
    assert [edge.source for edge in circuits.edges(stored, target=3)] == [0, 1]
    assert [edge.target for edge in circuits.edges(stored, source=2)] == [0]
    assert len(circuits.edges(stored, min_weight=1.5)) == 1


def reference(graph: Circuit, node_threshold: float, edge_threshold: float) -> tuple[list[int], set[tuple]]:
    """circuit-tracer's prune_graph, dense and literal, on nodes ordered features, errors, tokens, logits."""
    kinds = [each.kind for each in graph.nodes]
    size, n_features = len(kinds), kinds.count(NodeKind.FEATURE)
    n_ends = kinds.count(NodeKind.TOKEN) + kinds.count(NodeKind.LOGIT)
    source, target = (np.frombuffer(a.data, np.int32) for a in (graph.edges.source, graph.edges.target))
    matrix = np.zeros((size, size))
    matrix[target, source] = np.frombuffer(graph.edges.weight.data, np.float32)
    weights = np.array([abs(each.activation) if each.kind is NodeKind.LOGIT else 0.0 for each in graph.nodes])
    weights = weights / weights.sum()

    def normalised(a):
        a = np.abs(a)
        return a / np.maximum(a.sum(1, keepdims=True), 1e-10)

    def influence(a):
        current, total = weights @ a, 0
        while current.any():
            total, current = total + current, current @ a
        return total

    def threshold(scores, share):
        ordered = np.sort(scores.flatten())[::-1]
        place = np.searchsorted(np.cumsum(ordered) / ordered.sum(), share)
        return ordered[min(place, len(ordered) - 1)]

    scores = influence(normalised(matrix))
    mask = scores >= threshold(scores, node_threshold)
    mask[-n_ends:] = True
    pruned = matrix.copy()
    pruned[~mask] = 0
    pruned[:, ~mask] = 0
    shares = normalised(pruned)
    edge_scores = shares * (influence(shares) + weights)[:, None]
    edges = edge_scores >= threshold(edge_scores, edge_threshold)
    edges &= pruned != 0
    old = None
    while old is None or not np.array_equal(old, mask):
        old = mask.copy()
        mask[:-n_ends] &= edges[:, :-n_ends].any(0)
        mask[:n_features] &= edges[:n_features].any(1)
        edges[~mask] = False
        edges[:, ~mask] = False
    return list(np.flatnonzero(mask)), {(int(s), int(t)) for t, s in np.argwhere(edges)}


def random_circuit(seed: int, n_features: int = 60) -> Circuit:
    """A random layered graph with errors, tokens and two logits."""
    random = np.random.default_rng(seed)
    kinds = [NodeKind.FEATURE] * n_features + [NodeKind.ERROR] * 8 + [NodeKind.TOKEN] * 5
    nodes = [node(kind) for kind in kinds] + [node(NodeKind.LOGIT, activation=p) for p in (0.6, 0.3)]
    size = len(nodes)
    edges = []
    for target in [*range(n_features), size - 2, size - 1]:
        below = [*range(target if target < n_features else n_features), *range(n_features, size - 2)]
        for source in random.choice(below, size=min(12, len(below)), replace=False):
            edges.append((int(source), target, float(random.standard_normal() ** 3)))
    return circuit(nodes, edges)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("thresholds", [(0.8, 0.98), (0.5, 0.7), (0.99, 0.999)])
def test_pruning_agrees_with_the_dense_reference(seed, thresholds):
    """Sparse pruning keeps exactly what circuit-tracer's dense algorithm keeps."""
    graph = random_circuit(seed)
    kept = prune(graph, node_threshold=thresholds[0], edge_threshold=thresholds[1])
    source, target = (np.frombuffer(a.data, np.int32) for a in (graph.edges.source, graph.edges.target))
    nodes, edges = reference(graph, *thresholds)
    assert list(kept.nodes) == nodes
    assert {(int(source[e]), int(target[e])) for e in kept.edges} == edges
    assert 0 < len(kept.edges) < len(source)


def test_dangling_chain_is_dropped_to_its_end():
    """A feature that lost its only way out takes the features behind it along; tokens and logits stay."""
    nodes = [node(NodeKind.FEATURE) for _ in range(3)] + [node(NodeKind.TOKEN), node(NodeKind.LOGIT)]
    graph = circuit(nodes, [(3, 0, 1.0), (0, 1, 1.0), (3, 2, 1.0), (2, 4, 1.0)])
    kept = prune(graph, node_threshold=1.0, edge_threshold=1.0)
    assert kept.nodes == (2, 3, 4)
    assert kept.edges == (2, 3)


def test_circuit_without_edges_keeps_its_ends():
    """Nothing to prune is no error."""
    kept = prune(
        circuit([node(NodeKind.TOKEN), node(NodeKind.LOGIT)], []), node_threshold=0.8, edge_threshold=0.9
    )
    assert (kept.nodes, kept.edges) == ((0, 1), ())


def test_cycle_is_an_error_not_a_loop():
    """Edges that form a cycle are refused."""
    nodes = [node(NodeKind.FEATURE), node(NodeKind.FEATURE), node(NodeKind.LOGIT)]
    graph = circuit(nodes, [(0, 1, 1.0), (1, 0, 1.0), (0, 2, 1.0)])
    with pytest.raises(CorruptRecordError):
        prune(graph, node_threshold=0.8, edge_threshold=0.98)


@pytest.mark.parametrize("value", [0.0, -1.0, 1.01, float("nan")])
def test_thresholds_are_shares(value):
    """A threshold outside (0, 1] is refused by name."""
    with pytest.raises(InvalidRequestError):
        prune(small_circuit(), node_threshold=value, edge_threshold=0.9)


async def test_rendered_circuits_are_artifacts(tmp_path):
    """JSON parses; the page holds the prompt without running it."""
    here = house(tmp_path)
    found = small_circuit()
    found = replace(found, figures=replace(found.figures, error_share=0.1))
    await here.circuits.save(found, circuit_id="c1")
    info, kept = await here.circuits.render("circuits/c1", "json", 1.0, 1.0)
    assert json.loads(await here.artifacts.read(info.sha256))
    assert len(kept.nodes) == 4
    page, _ = await here.circuits.render("c1", "html")
    assert page.media_type.startswith("text/html")
    assert b"x </script>" not in await here.artifacts.read(page.sha256)
