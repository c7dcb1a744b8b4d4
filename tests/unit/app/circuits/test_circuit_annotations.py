"""Pins, labels and groups: set, merged, kept beside the circuit, brought in and out."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from tests.layered_circuits import at, layered
from tests.unit.app.house import House, circuit, column, house, node
from trephine.app.circuits.circuit_grouping import average_linkage
from trephine.app.circuits.group_measures import Flow, measure, partition_of
from trephine.app.circuits.pruning import prune
from trephine.domain.circuit_annotations import AutomaticGroups, NodeGroup
from trephine.domain.circuit_queries import Provenance, Pruning
from trephine.domain.circuits import NodeKind
from trephine.domain.directions import CompareFeatures, SimilarPairs
from trephine.domain.errors import InvalidRequestError, NothingMatchedError, ResourceNotFoundError
from trephine.domain.group_scores import GroupQuality
from trephine.domain.models import ModelSource
from trephine.pages.circuit_json import circuit_json, node_ids


async def annotated(here: House) -> str:
    """A stored circuit with a pin, a label and a group."""
    name = (await here.circuits.save(layered(), circuit_id="c1")).name
    say = here.circuit_annotations
    await say.pin(name, [4, 2, 4], "ann")
    await here.clock.advance(60)
    await say.label(name, 2, "capital cities", "bob")
    await say.group(name, "France", [1, 2], "bob")
    return name


async def test_annotations_are_read_back_by_the_next_server(tmp_path):
    """Author and time of each are kept; they go when the circuit goes."""
    here = house(tmp_path)
    name = await annotated(here)
    said = await house(tmp_path).circuits.annotations(name)
    assert [(one.node, one.author) for one in said.pins] == [(2, "ann"), (4, "ann")]
    assert [(one.node, one.text, one.author) for one in said.labels] == [(2, "capital cities", "bob")]
    assert said.labels[0].create_time > said.pins[0].create_time
    assert [(one.name, one.nodes) for one in said.groups] == [("France", (1, 2))]
    await here.circuits.delete(name)
    with pytest.raises(ResourceNotFoundError):
        await here.circuits.annotations(name)


async def test_annotations_are_changed_and_taken_off(tmp_path):
    """A label replaces a label, a node moves from group to group, an empty group goes."""
    here, say = (one := house(tmp_path)), one.circuit_annotations
    name = await annotated(here)
    assert (await say.label(name, 2, "Paris", "")).texts == {2: "Paris"}
    said = await say.group(name, "Europe", [2, 5], "")
    assert {one.name: one.nodes for one in said.groups} == {"France": (1,), "Europe": (2, 5)}
    said = await say.group(name, "Europe", [1], "")
    assert {one.name: one.nodes for one in said.groups} == {"Europe": (1,)}
    assert (await say.ungroup(name, "Europe")).groups == ()
    assert (await say.unpin(name, [2, 9])).pinned == {4}
    assert (await say.label(name, 2, "", "")).labels == ()
    with pytest.raises(ResourceNotFoundError, match="has no label"):
        await say.label(name, 2, "", "")
    with pytest.raises(ResourceNotFoundError, match="no group 'x'"):
        await say.ungroup(name, "x")


async def test_unfit_annotations_are_refused_and_change_nothing(tmp_path):
    """A node that does not exist, a label with controls, a group of nothing."""
    here, say = (one := house(tmp_path)), one.circuit_annotations
    name = await annotated(here)
    before = await say.get(name)
    for change in (
        say.pin(name, [0, 99], ""),
        say.label(name, -1, "x", ""),
        say.label(name, 1, "\u202egnorw", ""),
        say.label(name, 1, "x" * 201, ""),
        say.group(name, "x", [], ""),
        say.group(name, " ", [1], ""),
        say.pin(name, [1], "a\nb"),
    ):
        with pytest.raises(InvalidRequestError):
            await change
    assert await say.get(name) == before


async def test_annotations_survive_export_and_import(tmp_path):
    """A document brings everything back, to another circuit of the same nodes, authors and times too."""
    here, say = (one := house(tmp_path)), one.circuit_annotations
    name = await annotated(here)
    document = await say.export_document(name)
    other = (await here.circuits.save(layered(), circuit_id="c2")).name
    said, skipped = await say.import_document(other, document, "carl")
    assert said == await say.get(name)
    assert skipped == ()
    graph = {"qParams": {key: document[key] for key in ("pinnedIds", "supernodes", "clerps")}}
    third = (await here.circuits.save(layered(), circuit_id="c3")).name
    said, _ = await say.import_document(third, graph, "carl")
    assert {one.author for one in (*said.pins, *said.labels, *said.groups)} == {"carl"}
    assert said.texts == {2: "capital cities"}


async def test_what_was_said_already_keeps_its_author(tmp_path):
    """Bringing in what is there, and one pin more, changes nobody's word; a new label is a new word."""
    here, say = (one := house(tmp_path)), one.circuit_annotations
    name, ids = await annotated(here), node_ids(layered())
    before, document = await say.get(name), await say.export_document(name)
    graph = {key: document[key] for key in ("pinnedIds", "supernodes", "clerps")}
    said, _ = await say.import_document(name, {**graph, "pinnedIds": [*graph["pinnedIds"], ids[0]]}, "carl")
    assert (said.labels, said.groups) == (before.labels, before.groups)
    assert {pin for pin in said.pins if pin.author == "carl"} == set(said.pins) - set(before.pins)
    assert said.pinned == before.pinned | {0}
    said, _ = await say.import_document(name, {"clerps": [[ids[2], "other cities"]]}, "carl")
    assert [(one.text, one.author) for one in said.labels if one.node == 2] == [("other cities", "carl")]


async def test_a_group_that_was_there_is_made_anew_if_another_took_its_nodes(tmp_path):
    """Groups are brought in in turn: the later has the node, though it was there before."""
    here, ids = house(tmp_path), node_ids(layered())
    say, name = here.circuit_annotations, (await here.circuits.save(layered(), circuit_id="c1")).name
    await say.group(name, "A", [1, 2], "ann")
    document = {"supernodes": [["B", ids[2], ids[3]], ["A", ids[1], ids[2]]]}
    said, _ = await say.import_document(name, document, "carl")
    assert {one.name: (one.nodes, one.author) for one in said.groups} == {
        "A": ((1, 2), "carl"),
        "B": ((3,), "carl"),
    }


async def test_groups_of_a_file_are_each_once_and_have_their_nodes_alone(tmp_path):
    """Of two with one name, or with one node, the later has it, in an imported graph too."""
    here, ids = house(tmp_path), node_ids(layered())
    document = circuit_json(layered(), prune(layered(), node_threshold=1.0, edge_threshold=1.0), slug="x")
    document["qParams"]["supernodes"] = [["A", ids[0], ids[1]], ["B", ids[2]], ["A", ids[2], ids[3]]]
    stored = await here.artifacts.put(json.dumps(document).encode(), media_type="application/json")
    name = (await here.circuit_views.import_graph(stored.sha256)).name
    said = await here.circuit_annotations.get(name)
    where = {
        identity: place for place, identity in enumerate(node_ids((await here.circuits.get(name)).circuit))
    }
    assert [(one.name, one.nodes) for one in said.groups] == [("A", (where[ids[2]], where[ids[3]]))]


async def test_older_error_ids_are_accepted_and_foreign_ids_are_told(tmp_path):
    """`0_2_0` is the error of layer 2, unless a feature of layer 0 has that id."""
    here, say = (one := house(tmp_path)), one.circuit_annotations
    name, ids = await annotated(here), node_ids(layered())
    said, skipped = await say.import_document(name, {"pinnedIds": ["0_2_0", "9_9_9"]}, "")
    assert [ids[pin] for pin in sorted(said.pinned - {2, 4})] == ["2_-1_0"]
    assert skipped == ("9_9_9",)
    with pytest.raises(InvalidRequestError, match="of another circuit"):
        await say.import_document(name, {"pinnedIds": ["9_9_9"]}, "")
    for broken in ({}, {"pinnedIds": 3}, {"supernodes": [[]]}, {"clerps": [["a"]]}, {"qParams": 1}):
        with pytest.raises(InvalidRequestError):
            await say.import_document(name, broken, "")


async def test_a_pruned_circuit_takes_its_annotations_along(tmp_path):
    """Nodes are renumbered; what is said about dropped nodes is dropped."""
    here = house(tmp_path)
    name = await annotated(here)
    view = await here.circuit_views.prune(name, Pruning(node_threshold=0.4))
    said, whole = await here.circuits.annotations(view.name), layered()
    assert {view.circuit.nodes[one.node].label: one.text for one in said.labels} == {
        whole.nodes[2].label: "capital cities"
    }
    assert len(said.pins) == 2


async def grouped(here: House, *nodes: tuple[int, ...]) -> str:
    """A stored circuit with found groups, and one of the user's own."""
    name = (await here.circuits.save(layered(), circuit_id="c1")).name
    await here.circuit_annotations.group(name, "mine", [15], "ann")
    found = tuple(
        NodeGroup(name=f"found {n}", nodes=one, author="", create_time="t", how="similar edges", cohesion=0.4)
        for n, one in enumerate(nodes)
    )
    await here.circuits.annotate(name, lambda said: replace(said, groups=(*said.groups, *found)))
    return name


async def test_groups_that_lose_nodes_claim_no_more_than_is_left(tmp_path):
    """A found group of one node is none; of others it is said that they were found as larger ones."""
    here, say = (one := house(tmp_path)), one.circuit_annotations
    name = await grouped(here, (1, 2), (3, 4, 5), (7, 8))
    said = {one.name: one for one in (await say.group(name, "Europe", [2, 5], "bob")).groups}
    assert said.keys() == {"mine", "Europe", "found 1", "found 2"}
    assert (said["found 1"].nodes, said["found 1"].cohesion) == ((3, 4), None)
    assert said["found 1"].how == "of a larger group: similar edges"
    assert (said["found 2"].how, said["found 2"].cohesion) == ("similar edges", 0.4)
    said = {one.name: one for one in (await say.group(name, "Asia", [5, 2], "bob")).groups}
    assert said.keys() == {"mine", "Asia", "found 1", "found 2"}


async def test_groups_of_a_pruned_circuit_claim_no_more_than_is_left(tmp_path):
    """What pruning took away is gone from what was found; the user's own group of one node stays."""
    here = house(tmp_path)
    kept = prune(layered(), node_threshold=0.7, edge_threshold=1.0).nodes
    features = range(20)
    stay, go = ([n for n in features if (n in kept) == inside] for inside in (True, False))
    name = await grouped(here, (stay[0], go[0]), (stay[1], stay[2], go[1]), (stay[3], stay[4]))
    bounds = Pruning(node_threshold=0.7, edge_threshold=1.0, keep=(15,))
    view = await here.circuit_views.prune(name, bounds)
    said = {one.name: one for one in (await here.circuits.annotations(view.name)).groups}
    assert said.keys() == {"mine", "found 1", "found 2"}
    assert len(said["mine"].nodes) == 1
    assert (len(said["found 1"].nodes), said["found 1"].cohesion) == (2, None)
    assert said["found 1"].how == "of a larger group: similar edges"
    assert said["found 2"].cohesion == 0.4
    again = await here.circuit_views.prune(view.name, Pruning(node_threshold=1.0, edge_threshold=1.0))
    document = await here.circuit_annotations.export_document(again.name)
    assert document["authorship"]["groups"]["found 1"][2] == "of a larger group: similar edges"


async def test_a_file_of_fewer_nodes_shows_no_group_of_one(tmp_path):
    """Of groups that were found: neither in an export nor where annotations are brought in."""
    here = house(tmp_path)
    kept = prune(layered(), node_threshold=0.4, edge_threshold=1.0)
    name = await grouped(here, (kept.nodes[0], next(n for n in range(20) if n not in kept.nodes)))
    said = await here.circuits.annotations(name)
    document = circuit_json(layered(), kept, slug="x", annotations=said)
    assert "found 0" not in {one[0] for one in document["qParams"]["supernodes"]}
    view = await here.circuit_views.prune(name, Pruning(node_threshold=0.4, edge_threshold=1.0))
    whole = await here.circuit_annotations.export_document(name)
    await here.circuit_annotations.pin(name, [kept.nodes[0]], "")
    whole["pinnedIds"] = [node_ids(layered())[kept.nodes[0]]]
    brought, _ = await here.circuit_annotations.import_document(view.name, whole, "carl")
    assert "found 0" not in {one.name for one in brought.groups}


def test_average_linkage_is_that_of_brute_force():
    """Merging the most similar pair of clusters again and again gives the same partition."""
    random = np.random.default_rng(0)
    for _ in range(20):
        similarity = random.uniform(0, 1, (9, 9)).round(3)
        pairs = [(i, j, float(similarity[i, j])) for i, j in combinations(range(9), 2)]
        clusters = [[place] for place in range(9)]

        def mean(a: list[int], b: list[int], known=similarity) -> float:
            return float(np.mean([known[min(i, j), max(i, j)] for i in a for j in b]))

        while len(clusters) > 1:
            best = max(combinations(range(len(clusters)), 2), key=lambda ab: mean(*(clusters[x] for x in ab)))
            a, b = (clusters[x] for x in best)
            if mean(a, b) < 0.6:
                break
            clusters = [one for one in clusters if one not in (a, b)] + [a + b]
        found = average_linkage(9, pairs, 0.6)
        assert {one.members for one in found} == {tuple(sorted(one)) for one in clusters if len(one) > 1}


def twins():
    """Features 0 and 1 read and write the same nodes; 2 does not; 3 is as 0, but at another position."""
    nodes = [
        at(NodeKind.FEATURE, 0, 0, 1, influence=0.3),
        at(NodeKind.FEATURE, 1, 0, 2, influence=0.2),
        at(NodeKind.FEATURE, 1, 0, 3, influence=0.1),
        at(NodeKind.FEATURE, 1, 1, 1, influence=0.1),
        at(NodeKind.TOKEN, -1, 0, 100),
        at(NodeKind.TOKEN, -1, 1, 101),
        at(NodeKind.LOGIT, 2, 1, 7, activation=0.5),
    ]
    edges = [
        (4, 0, 1.0),
        (4, 1, 2.0),
        (5, 2, 1.0),
        (4, 3, 1.0),
        (0, 6, 1.0),
        (1, 6, 0.5),
        (2, 6, -1.0),
        (3, 6, 1.0),
    ]
    return circuit(nodes, sorted(edges, key=lambda edge: edge[1]))


@pytest.mark.parametrize(("features", "told"), [(0, "no feature"), (1, "one feature")])
async def test_groups_of_fewer_than_two_features_are_told_apart_from_unlike_ones(tmp_path, features, told):
    """A threshold would change nothing: the answer is more nodes."""
    here, say = (one := house(tmp_path)), one.circuit_annotations
    nodes = [node(NodeKind.FEATURE)] * features + [node(NodeKind.TOKEN), node(NodeKind.LOGIT)]
    name = (await here.circuits.save(circuit(nodes, [(0, len(nodes) - 1, 1.0)]), circuit_id="c1")).name
    for how in (
        AutomaticGroups(),
        AutomaticGroups(basis="edges"),
        AutomaticGroups(basis="edges", min_shown=0.8),
    ):
        with pytest.raises(NothingMatchedError, match=f"the circuit has {told}") as refused:
            await say.group_automatically(name, how, "")
        assert "min_similarity" not in refused.value.message


async def test_groups_are_found_by_edges_without_a_model(tmp_path):
    """Nodes with the same sources and goals at one position are one group; hand-made groups stay whole."""
    here, say = (one := house(tmp_path)), one.circuit_annotations
    imported = Provenance(origin="imported")
    name = (await here.circuits.save(twins(), circuit_id="c1", provenance=imported)).name
    how = AutomaticGroups(basis="edges", min_similarity=0.9)
    said = await say.group_automatically(name, how, "ann")
    assert [one.nodes for one in said.groups] == [(0, 1)]
    assert said.groups[0].cohesion == pytest.approx(1.0)
    assert said.groups[0].author == "ann"
    assert "similar edges" in said.groups[0].how
    wide = AutomaticGroups(basis="edges", min_similarity=0.9, max_positions_apart=1)
    assert [one.nodes for one in (await say.group_automatically(name, wide, "")).groups] == [(0, 1, 3)]
    await say.group(name, "mine", [3], "")
    said = await say.group_automatically(name, wide, "")
    assert [one.nodes for one in said.groups] == [(3,), (0, 1)]
    with pytest.raises(InvalidRequestError, match="imported"):
        await say.group_automatically(name, AutomaticGroups(), "")
    with pytest.raises(NothingMatchedError):
        await say.group_automatically(name, AutomaticGroups(basis="edges", max_layers_apart=0), "")
    for unfit in (
        AutomaticGroups(min_similarity=0),
        AutomaticGroups(min_shown=0),
        AutomaticGroups(max_nodes=1),
        AutomaticGroups(max_layers_apart=-1),
    ):
        with pytest.raises(InvalidRequestError):
            await say.group_automatically(name, unfit, "")


async def test_a_threshold_is_chosen_by_what_the_picture_shows(tmp_path):
    """The least of the grid whose groups leave the asked share of path mass in sight, if any does."""
    here, say = (one := house(tmp_path)), one.circuit_annotations
    circuit = layered(2, layers=3, positions=1, per_layer=12)
    name = (await here.circuits.save(circuit, circuit_id="c1")).name
    loose, strict = [
        (await say.group_automatically(name, AutomaticGroups(basis="edges", min_shown=share), "")).groups
        for share in (0.2, 0.9)
    ]
    flow, size = Flow.of(circuit), len(circuit.nodes)
    shown = [
        measure(flow, partition_of(size, [one.nodes for one in groups])).whole[GroupQuality.SHOWN]
        for groups in (loose, strict)
    ]
    assert 0.2 <= shown[0] < 0.9 <= shown[1]
    assert f"shows enough of the path mass: {shown[1]:.2f})" in strict[0].how
    threshold = float(strict[0].how.split("at least ")[1].split()[0])
    given = AutomaticGroups(basis="edges", min_similarity=threshold)
    again = (await say.group_automatically(name, given, "")).groups
    assert [one.nodes for one in again] == [one.nodes for one in strict]
    before = AutomaticGroups(basis="edges", min_similarity=threshold - 0.1)
    looser = (await say.group_automatically(name, before, "")).groups
    parts = partition_of(size, [one.nodes for one in looser])
    assert measure(flow, parts).whole[GroupQuality.SHOWN] < 0.9
    with pytest.raises(NothingMatchedError, match="lower min_shown"):
        await say.group_automatically(name, AutomaticGroups(basis="edges", min_shown=1.0), "")


async def test_groups_by_direction_take_each_feature_once_and_stay_at_a_position(tmp_path):
    """The engine is asked about features; the same feature at other positions is another node."""
    asked = []

    def compared(command: CompareFeatures) -> SimilarPairs:
        asked.append(command)
        return SimilarPairs(
            first=column("int32", [0, 1]),
            second=column("int32", [1, 2]),
            similarity=column("float32", [0.8, 0.3]),
        )

    here = house(tmp_path, {CompareFeatures: compared})
    await here.models.load(
        ModelSource(name="tiny", folder=str(tmp_path / "models" / "tiny")), lambda progress: None
    )
    name = (await here.circuits.save(twins(), circuit_id="c1")).name
    said = await here.circuit_annotations.group_automatically(name, AutomaticGroups(), "")
    assert [(one.layer, one.index) for one in asked[0].features] == [(0, 1), (1, 2), (1, 3), (1, 1)]
    assert asked[0].min_similarity == 0.25
    assert [one.nodes for one in said.groups] == [(0, 1)]


async def test_every_export_says_what_was_said(tmp_path):
    """The page's data and the JSON hold the same pins, groups and labels; GraphML has them on its nodes."""
    here = house(tmp_path)
    name, ids = await annotated(here), node_ids(layered())
    files = {}
    for form in ("html", "json", "graphml"):
        info, _ = await here.circuits.render(name, form, 0.3, 0.3)
        files[form] = (await here.artifacts.read(info.sha256)).decode()
    view = json.loads(files["json"])["qParams"]
    assert view["pinnedIds"] == [ids[2], ids[4]]
    assert view["supernodes"][0][0] == "France"
    island = re.findall(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', files["html"], re.DOTALL)
    shown = json.loads(island[0])["view"]
    assert shown["pinned"] == view["pinnedIds"]
    assert shown["labels"] == dict(view["clerps"])
    assert [[one["label"], *one["members"]] for one in shown["groups"]] == view["supernodes"]
    assert ">France<" in files["graphml"]
    assert files["graphml"].count(">true<") == 2
