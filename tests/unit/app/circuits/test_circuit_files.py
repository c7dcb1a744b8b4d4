"""Circuits as files: the circuit-tracer schema both ways, and GraphML read back by networkx.

`fixtures/circuit_tracer/capital.json` was written by circuit-tracer 0.5.0's own `create_graph_files` (three
layers, five tokens, two targets); its features `0_1_3` and `0_2_4` have the ids of two of its error nodes.
`schema.json` is its `Model.model_json_schema()`.
"""

from __future__ import annotations

import json
from array import array
from dataclasses import replace
from io import BytesIO
from math import isnan
from pathlib import Path
from typing import Any

import jsonschema
import networkx
import pytest

from tests.layered_circuits import layered
from tests.synthetic_circuits import whole
from tests.unit.app.circuits.test_circuit_diff import behind
from tests.unit.app.circuits.test_circuit_queries import edges_of
from tests.unit.app.house import house
from tests.unit.pages.circuits import HOSTILE, hostile_circuit
from trephine.app.circuits.circuit_diff import same_targets
from trephine.app.circuits.circuit_imports import read_graph
from trephine.app.circuits.pruning import prune
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuit_annotations import NO_ANNOTATIONS
from trephine.domain.circuits import Circuit, NodeKind
from trephine.domain.errors import InvalidRequestError
from trephine.domain.sites import Site, SiteKind
from trephine.domain.targets import (
    AttentionScore,
    DirectionValue,
    FeatureValue,
    GraphTarget,
    TokenLogits,
    TopLogits,
)
from trephine.pages.circuit_graphml import circuit_graphml
from trephine.pages.circuit_json import circuit_json, node_ids

FOLDER = Path(__file__).parents[3] / "fixtures" / "circuit_tracer"
CAPITAL = (FOLDER / "capital.json").read_bytes()


def document_of(graph: Circuit) -> dict[str, Any]:
    """Its JSON, as a file holds it."""
    document = circuit_json(graph, whole(graph), slug="x")
    return json.loads(json.dumps(document, allow_nan=False))


def links(document: dict[str, Any]) -> dict[tuple[str, str], float]:
    """Weights by end points."""
    return {(one["source"], one["target"]): one["weight"] for one in document["links"]}


def test_what_circuit_tracer_writes_is_read_whole():
    """Every node and link arrives, with the newer ids; nothing of 0.5.0's own nodes is lost."""
    theirs, graph = json.loads(CAPITAL), read_graph(CAPITAL).circuit
    ours = document_of(graph)
    newer = {"0_1_3", "0_2_4"}
    old = [n["node_id"] for n in theirs["nodes"] if n["feature_type"] != "mlp reconstruction error"]
    old += [
        f"{n['layer']}_-1_{n['ctx_idx']}"
        for n in theirs["nodes"]
        if n["feature_type"] == "mlp reconstruction error"
    ]
    assert sorted(n["node_id"] for n in ours["nodes"]) == sorted(old)
    assert len(graph.nodes) == 30
    assert len(edges_of(graph)) == len(theirs["links"]) == len(links(ours)) == 137
    kept = {"node_id", "clerp", "influence"}
    for before in theirs["nodes"]:
        if before["feature_type"] == "mlp reconstruction error":
            continue
        after = next(n for n in ours["nodes"] if n["node_id"] == before["node_id"])
        for field in before.keys() - kept:
            assert after[field] == pytest.approx(before[field]), field
    unshared = {
        p: w for p, w in links(theirs).items() if p[0] in links_of_features(theirs) and p[0] not in newer
    }
    assert len(unshared) > 30
    assert {pair: links(ours)[pair] for pair in unshared} == pytest.approx(unshared)


def links_of_features(document: dict[str, Any]) -> set[str]:
    """Ids of features and tokens."""
    kinds = ("cross layer transcoder", "embedding")
    return {one["node_id"] for one in document["nodes"] if one["feature_type"] in kinds}


def test_ids_that_a_feature_and_an_error_share_are_told_apart():
    """Two links from one id to one target: the feature's comes first in the file, the error's second."""
    theirs, graph = json.loads(CAPITAL), read_graph(CAPITAL).circuit
    ids = node_ids(graph)
    ours = {(ids[s], ids[t]): w for s, t, w in edges_of(graph)}
    twice = [
        one["weight"] for one in theirs["links"] if (one["source"], one["target"]) == ("0_1_3", "4_7042_4")
    ]
    assert len(twice) == 2
    assert ours["0_1_3", "4_7042_4"] == pytest.approx(twice[0])
    assert ours["1_-1_3", "4_7042_4"] == pytest.approx(twice[1])
    assert ("1_-1_3", "1_3_4") not in ours  # an error of layer 1 cannot reach a feature of layer 1
    assert not [caveat for caveat in graph.caveats if "share in the file" in caveat]


def test_what_we_write_obeys_the_schema_and_is_read_back():
    """The document passes circuit-tracer's own schema; importing and exporting it again changes nothing."""
    schema = json.loads((FOLDER / "schema.json").read_text())
    for graph in (layered(), read_graph(CAPITAL).circuit):
        document = document_of(graph)
        jsonschema.validate(document, schema)
        again = document_of(read_graph(json.dumps(document).encode()).circuit)
        jsonschema.validate(again, schema)
        assert links(again) == pytest.approx(links(document))
        assert [n["node_id"] for n in again["nodes"]] == [n["node_id"] for n in document["nodes"]]
        assert [n["activation"] for n in again["nodes"]] == pytest.approx(
            [n["activation"] for n in document["nodes"]]
        )
        assert again["metadata"]["scan"] == document["metadata"]["scan"]
    twice = document_of(read_graph(json.dumps(again).encode()).circuit)
    assert twice["nodes"] == again["nodes"]


def test_figures_beyond_the_schema_survive_a_file():
    """Effects, what enters rows, promoted tokens and the target's value; of other tools none is read."""
    graph = layered()
    nodes = tuple(
        replace(node, effect=0.25 * place, promotes=(" a", " b"), suppresses=(" c",))
        for place, node in enumerate(graph.nodes)
    )
    graph = replace(graph, nodes=nodes)
    document = document_of(graph)
    read = read_graph(json.dumps(document).encode()).circuit
    told = {identity: node for identity, node in zip(node_ids(read), read.nodes, strict=True)}
    for identity, node in zip(node_ids(graph), graph.nodes, strict=True):
        assert told[identity].effect == node.effect
        assert (told[identity].promotes, told[identity].suppresses) == (node.promotes, node.suppresses)
    assert document_of(read)["metadata"]["info"]["nodes"].keys() == told.keys()
    rows = {node_ids(graph)[n]: place for place, n in enumerate(array("i", graph.rows.target.data))}
    for place, n in enumerate(array("i", read.rows.target.data)):
        was = rows[node_ids(read)[n]]
        for column in ("total", "bias", "remainder"):
            values = [array("f", getattr(one.rows, column).data) for one in (read, graph)]
            assert values[0][place] == pytest.approx(values[1][was], abs=1e-6)
    assert len(rows) == len(array("i", read.rows.target.data))
    assert read.figures.baseline == pytest.approx(sum(one.share * one.value for one in graph.targets))
    document["metadata"]["info"]["generator"] = "another"
    assert all(isnan(node.effect) for node in read_graph(json.dumps(document).encode()).circuit.nodes)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"9_9_9": {"effect": "much"}}, "does not say what was measured"),
        ({"9_9_9": {"total": 1e39}}, "does not say what was measured"),
        ([1], "does not say what was measured"),
    ],
)
def test_figures_that_are_none_are_refused(told, why):
    """Of a file that says it is ours."""
    document = document_of(layered())
    document["metadata"]["info"]["nodes"] = told
    with pytest.raises(InvalidRequestError, match=why):
        read_graph(json.dumps(document).encode())


def test_a_file_that_somebody_cut_keeps_its_rows_whole():
    """Nodes and links may be gone; what the links carried is in the remainder then (law 3)."""
    document = document_of(layered())
    gone = next(n["node_id"] for n in document["nodes"] if n["feature_type"] == "cross layer transcoder")
    document["nodes"] = [one for one in document["nodes"] if one["node_id"] != gone]
    document["links"] = [one for one in document["links"] if gone not in (one["source"], one["target"])]
    read = read_graph(json.dumps(document).encode()).circuit
    assert gone not in node_ids(read)
    entering = [0.0] * len(read.nodes)
    for _, target, weight in edges_of(read):
        entering[target] += weight
    rows = (array("f", column.data) for column in (read.rows.total, read.rows.bias, read.rows.remainder))
    for target, total, bias, remainder in zip(array("i", read.rows.target.data), *rows, strict=True):
        assert entering[target] + bias + remainder == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("weight", [1e39, -1e308])
def test_weights_beyond_what_is_stored_are_refused(weight):
    """As float32 they would be infinite, and every influence no number."""
    document = json.loads(CAPITAL)
    document["links"][0]["weight"] = weight
    with pytest.raises(InvalidRequestError, match=r"links\.0\.weight"):
        read_graph(json.dumps(document).encode())


def test_json_nested_without_end_is_refused():
    """By the error of everything that is no graph."""
    with pytest.raises(InvalidRequestError, match="nested deeper"):
        read_graph(b"[" * 100_000)


def test_what_a_reader_must_know_survives_a_file():
    """Caveats of a file of ours are those of what is read, behind the one that it was imported, once."""
    graph = replace(layered(), caveats=("Position 0 is a sink.",))
    graph = replace(graph, figures=replace(graph.figures, error_share=0.1))
    read = read_graph(json.dumps(document_of(graph)).encode()).circuit
    again = read_graph(json.dumps(document_of(read)).encode()).circuit
    assert read.caveats == again.caveats
    assert read.caveats[2:] == ("Position 0 is a sink.",)
    assert "graph that the file was written from" in read.caveats[1]
    foreign = document_of(graph)
    foreign["metadata"]["info"]["generator"] = "another"
    assert not any("sink" in one for one in read_graph(json.dumps(foreign).encode()).circuit.caveats)


async def test_imported_circuit_is_marked_and_keeps_its_annotations(tmp_path):
    """It says that nothing was verified; pins, groups and labels of the file are its own."""
    here, document = house(tmp_path), json.loads(CAPITAL)
    document["qParams"] |= {"pinnedIds": ["2_11_4"], "supernodes": [["France", "0_7_1", "1_5_1"]]}
    document["qParams"]["clerps"] = [["2_11_4", "says Paris"]]
    stored = await here.artifacts.put(json.dumps(document).encode(), media_type="application/json")
    imported = await here.circuit_views.import_graph(stored.sha256)
    assert (await here.circuit_views.import_graph(stored.sha256)).name == imported.name
    assert imported.provenance.origin == "imported"
    assert imported.circuit.quality is None
    assert imported.circuit.edge_rule == "unknown"
    assert imported.circuit.targets[0].label == " Paris"
    assert "nothing about it was verified" in imported.circuit.caveats[0]
    said, ids = await here.circuits.annotations(imported.name), node_ids(imported.circuit)
    assert [ids[pin] for pin in said.pinned] == ["2_11_4"]
    assert {ids[node]: text for node, text in said.texts.items()} == {"2_11_4": "says Paris"}
    info, _ = await here.circuits.render(imported.name, "json", 1.0, 1.0)
    again = json.loads(await here.artifacts.read(info.sha256))
    assert again["qParams"]["supernodes"] == [["France", "0_7_1", "1_5_1"]]
    assert again["qParams"]["clerps"] == [["2_11_4", "says Paris"]]
    assert next(n["clerp"] for n in again["nodes"] if n["node_id"] == "2_11_4") == "says Paris"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.pop("nodes"), "nodes"),
        (lambda d: d["nodes"].append(d["nodes"][0]), "twice"),
        (lambda d: d["links"].append({"source": "x", "target": "0_7_1", "weight": 1.0}), "not both nodes"),
        (lambda d: d["links"].append(d["links"][-1]), "twice"),
        (lambda d: d["links"].append({"source": "2_11_4", "target": "0_7_1", "weight": 1.0}), "cycle"),
        (lambda d: d["nodes"][0].update(ctx_idx=99), "position 99"),
        (lambda d: d["nodes"][0].update(node_id="7"), "no id like"),
        (lambda d: d.update(nodes=[n for n in d["nodes"] if n["feature_type"] != "logit"]), "no target"),
        (lambda d: d["links"][0].update(weight=float("nan")), "finite"),
    ],
)
def test_broken_files_are_refused_in_words(change, said):
    """What is missing, double, dangling or cyclic is named, and nothing is stored."""
    document = json.loads(CAPITAL)
    # 0_7_1 must lead to 2_11_4 for the back link to close a cycle.
    if ("0_7_1", "2_11_4") not in links(document):
        document["links"].append({"source": "0_7_1", "target": "2_11_4", "weight": 1.0})
    change(document)
    with pytest.raises(InvalidRequestError, match=said):
        read_graph(json.dumps(document).encode())
    with pytest.raises(InvalidRequestError, match="no JSON"):
        read_graph(b"{")


def test_graphml_is_read_back_by_networkx():
    """Nodes, edges, weights and attributes equal the circuit's."""
    graph = layered(2)
    data = circuit_graphml(graph, whole(graph), name="circuits/1")
    read, ids = networkx.read_graphml(BytesIO(data)), node_ids(graph)
    assert read.is_directed()
    assert list(read.nodes) == ids
    assert {(s, t): d["weight"] for s, t, d in read.edges(data=True)} == {
        (ids[s], ids[t]): w for s, t, w in edges_of(graph)
    }
    for identity, node in zip(ids, graph.nodes, strict=True):
        shown = read.nodes[identity]
        assert (shown["kind"], shown["layer"], shown["position"]) == (
            node.kind.value,
            node.layer,
            node.position,
        )
        assert shown["influence"] == node.influence
    assert read.graph["prompt"] == graph.prompt


def test_influence_in_a_file_is_the_other_tools_own():
    """Cumulative, of the whole graph: a viewer that starts at the threshold shows what the file holds."""
    graph, given = read_graph(CAPITAL).circuit, json.loads(CAPITAL)
    told = {
        one["node_id"]: one["influence"]
        for one in given["nodes"]
        if one["feature_type"] in ("cross layer transcoder", "embedding")
    }
    shown = {one["node_id"]: one["influence"] for one in document_of(graph)["nodes"]}
    assert len(told) == 13
    assert [shown[identity] for identity in told] == pytest.approx(list(told.values()), abs=1e-5)
    kept = prune(graph, node_threshold=0.6, edge_threshold=1.0)
    inner = [one for one in kept.nodes if graph.nodes[one].kind in (NodeKind.FEATURE, NodeKind.ERROR)]
    assert sorted(kept.cumulative[one] for one in inner)[-2] <= 0.6
    document = circuit_json(graph, kept, slug="x")
    assert [one["influence"] for one in document["nodes"]] == [kept.cumulative[one] for one in kept.nodes]


def test_hostile_texts_and_missing_numbers_survive_graphml():
    """Controls, lone surrogates and markup stay text; what is no number is left out."""
    graph = hostile_circuit()
    read = networkx.read_graphml(
        BytesIO(circuit_graphml(graph, whole(graph), name="x", annotations=NO_ANNOTATIONS))
    )
    label = read.nodes[node_ids(graph)[0]]["label"]
    assert "</script><img src=x onerror=alert(1)>" in label
    assert "\\ud83d" in label
    assert label != HOSTILE
    imported = read_graph(CAPITAL).circuit
    read = networkx.read_graphml(BytesIO(circuit_graphml(imported, whole(imported), name="x")))
    assert not [one for one in read.nodes.values() if "effect" in one]
    assert sum(one["kind"] == NodeKind.ERROR for one in read.nodes.values()) == 15


ASKED: tuple[tuple[GraphTarget, tuple[int, ...]], ...] = (
    (LogitTarget(token="#7"), (7,)),
    (LogitTarget(token="#7", against="#9"), (7, 9)),
    (TokenLogits(tokens=("#7",)), (7,)),
    (TopLogits(limit=3, mass=0.5), (7,)),
    (FeatureValue(layer=1, index=7, replacement="sae"), ()),
    (
        DirectionValue(
            site=Site(kind=SiteKind.RESID_MID, layer=1), vector=(0.1, -1 / 3, 1e-30), name="probe \ud800"
        ),
        (),
    ),
    (AttentionScore(layer=2, head=7, key=1), ()),
)


@pytest.mark.parametrize(("asked", "tokens"), ASKED, ids=lambda one: getattr(one, "kind", ""))
def test_what_is_explained_survives_a_file(asked, tokens):
    """Every kind of target comes back as what it was: unit, share, tokens, the question to its last digit."""
    graph = behind(asked, tokens=tokens)
    graph = replace(graph, targets=(replace(graph.targets[0], estimated=True, value=-2.5),))
    document = document_of(graph)
    jsonschema.validate(document, json.loads((FOLDER / "schema.json").read_text()))
    again = read_graph(json.dumps(document).encode()).circuit
    assert again.units == graph.units
    (one,), (other,) = graph.targets, again.targets
    shown = [None if one is None else (one.id, one.display) for one in (one.token, one.against)]
    assert [None if t is None else (t.id, t.display) for t in (other.token, other.against)] == shown
    raw = {"token": None, "against": None, "position": 0}
    assert replace(one, **raw) == replace(other, **raw)
    if isinstance(asked, DirectionValue):
        assert again.asked == replace(asked, name="probe \\ud800")
    else:
        assert again.asked == asked
        assert same_targets(again, read_graph(json.dumps(document_of(again)).encode()).circuit)
    assert document_of(again)["metadata"]["info"]["targets"] == document["metadata"]["info"]["targets"]


def test_targets_keep_their_shares_and_weigh_by_them():
    """Two positions count evenly, however likely their tokens are; influences follow from that."""
    graph = layered(3)
    last = graph.nodes[-1]
    nodes = (*graph.nodes[:-1], last, replace(last, position=0, activation=0.01))
    targets = tuple(replace(graph.targets[0], share=0.5, position=n.position) for n in nodes[-2:])
    several = replace(graph, nodes=nodes, targets=targets, asked=TopLogits())
    again = read_graph(json.dumps(document_of(several)).encode()).circuit
    assert [target.share for target in again.targets] == [0.5, 0.5]
    assert [node.influence for node in again.nodes[-2:]] == [0.5, 0.5]
    alone = read_graph(json.dumps(document_of(graph)).encode()).circuit
    first = [node.influence for node in again.nodes[:-2]]
    assert first == pytest.approx([node.influence / 2 for node in alone.nodes[:-1]])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda info: info.update(targets=[]), "tells of 0 targets, and its graph has 1"),
        (lambda info: info.update(targets=[{"kind": "poem"}]), "does not say what the graph explains"),
        (lambda info: info.update(asked={"kind": "attention", "layer": 1}), "does not say what"),
        (lambda info: info["targets"][0].update(share=float("inf")), "does not say what"),
    ],
)
def test_a_file_that_contradicts_itself_about_its_targets_is_refused(change, said):
    """In words that name the place."""
    document = document_of(layered(3))
    change(document["metadata"]["info"])
    with pytest.raises(InvalidRequestError, match=said):
        read_graph(json.dumps(document).encode())
