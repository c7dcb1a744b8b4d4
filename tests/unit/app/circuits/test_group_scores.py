"""Scores of groups: against their formulas, on planted groups, on nonsense, and beside their controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from benchmarks.planted_groups import planted
from tests.builders import tiny_hosted
from tests.layered_circuits import layered
from tests.resident_sets import resident_set
from tests.unit.app.house import house
from trephine.app.circuits import group_controls, group_measures
from trephine.app.circuits.group_controls import Places, partitions_by_layer, random_partitions
from trephine.app.circuits.group_measures import ALONE, Flow, Partition, measure, partition_of
from trephine.app.circuits.group_picture import picture_figures
from trephine.app.circuits.group_scores import score_groups
from trephine.app.circuits.pruning import edge_influence, numbers
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuit_annotations import NodeGroup
from trephine.domain.circuits import Circuit, DiscoverCircuit, Node, NodeKind
from trephine.domain.errors import InvalidRequestError, UnsupportedOptionError
from trephine.domain.group_scores import GroupQuality
from trephine.domain.standings import Standing
from trephine.engine.graphs.discover import discover_circuit
from trephine.engine.models.quanta import finish


def named(groups: Sequence[Sequence[int]], how: str = "") -> list[NodeGroup]:
    """Groups of nodes by number."""
    return [
        NodeGroup(name=f"group {n}", nodes=tuple(nodes), author="", create_time="", how=how)
        for n, nodes in enumerate(groups)
    ]


def shuffled(truth: Sequence[int], per_stage: int, seed: int) -> list[tuple[int, ...]]:
    """Groups of the same sizes, in the same layers, of nodes that do not belong together."""
    random, label = np.random.default_rng(seed), np.array(truth)
    for stage in range(max(truth) // per_stage + 1):
        own = np.flatnonzero(np.array(truth) // per_stage == stage)
        label[own] = random.permutation(label[own])
    return [tuple(np.flatnonzero(label == group).tolist()) for group in range(max(truth) + 1)]


def by_hand(circuit: Circuit, groups: Sequence[Sequence[int]]) -> dict[str, float]:
    """The formulas as they are written, edge by edge."""
    size, number = len(circuit.nodes), {node: n for n, nodes in enumerate(groups) for node in nodes}
    picture = [number.get(node, 1000 + node) for node in range(size)]
    columns = (circuit.edges.source, circuit.edges.target, circuit.edges.weight)
    source, target, weight = (numbers(column).tolist() for column in columns)
    mass = edge_influence(circuit, np.ones(len(weight), np.bool_)).tolist()

    def lumpability(near: list[int], far: list[int]) -> float:
        deviation = total = 0.0
        for nodes in groups:
            profiles = []
            for node in nodes:
                profile: dict[int, float] = {}
                for a, b, m in zip(near, far, mass, strict=True):
                    if a == node:
                        profile[picture[b]] = profile.get(picture[b], 0.0) + m
                profiles.append(profile)
            own = [sum(profile.values()) for profile in profiles]
            mean = {key: sum(p.get(key, 0.0) for p in profiles) / sum(own) for key in set().union(*profiles)}
            for profile, influence in zip(profiles, own, strict=True):
                deviation += sum(abs(profile.get(key, 0.0) - influence * mean[key]) for key in mean)
            total += sum(own)
        return deviation / total

    drawn: dict[tuple[int, int], list[float]] = {}
    inside = cancelled = leaving = leading = 0.0
    for a, b, w, m in zip(source, target, weight, mass, strict=True):
        if picture[a] == picture[b]:
            inside += m
        else:
            drawn.setdefault((picture[a], picture[b]), []).append(m if w > 0 else -m)
    for (a, _), signed in drawn.items():
        gross, net = sum(map(abs, signed)), abs(sum(signed))
        cancelled += gross - net
        if a < 1000:
            leaving, leading = leaving + gross, leading + (gross + net) / 2
    effects = [[circuit.nodes[node].effect for node in nodes] for nodes in groups]
    signs = [(sum(max(e, 0) for e in one), sum(max(-e, 0) for e in one)) for one in effects]
    return {
        "sources": lumpability(target, source),
        "goals": lumpability(source, target),
        "effect": sum(map(max, signs)) / sum(map(sum, signs)),
        "edge": leading / leaving,
        "shown": 1 - (inside + cancelled) / sum(mass),
        "inside": inside / sum(mass),
    }


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_those_of_the_formulas(seed: int):
    """On circuits where anything feeds anything above it, groups span layers and feed themselves."""
    random = np.random.default_rng(seed)
    circuit = layered(seed)
    circuit = replace(
        circuit, nodes=tuple(replace(node, effect=float(random.normal())) for node in circuit.nodes)
    )
    dealt = random.permutation(20).tolist()
    groups = [dealt[:2], dealt[2:7], dealt[7:10], [20, 24]]  # the last one is an error and a token
    expected = by_hand(circuit, groups)
    found = measure(Flow.of(circuit), partition_of(len(circuit.nodes), groups))
    assert found.inside == pytest.approx(expected.pop("inside"), abs=1e-6)
    assert expected.pop("shown") == pytest.approx(found.whole[GroupQuality.SHOWN], abs=1e-6)
    assert [found.whole[quality] for quality in list(GroupQuality)[:4]] == pytest.approx(
        list(expected.values()), abs=1e-6
    )


def test_planted_groups_are_lumpable_and_beat_both_controls():
    """The true partition loses nothing, random ones and neighbours do; 80 features become 16."""
    truth = planted()
    scores = score_groups(truth.circuit, named(truth.groups))
    values = {one.quality: one.value for one in scores.whole}
    assert values[GroupQuality.SOURCES] == pytest.approx(0, abs=1e-5)
    assert values[GroupQuality.GOALS] == pytest.approx(0, abs=1e-5)
    assert values[GroupQuality.SHOWN] == pytest.approx(1, abs=1e-5)
    assert all(one.standing is Standing.BEATS for one in scores.whole)
    assert all(one.random.median > 0.1 and one.by_layer.median > 0.1 for one in scores.whole[:2])
    assert scores.standing is Standing.BEATS
    assert scores.verdict.startswith("BEATS: better than both controls in lumpability of sources, ")
    assert (scores.before.nodes, scores.after.nodes) == (87, 23)
    assert scores.after.edges == 36  # two for each group, four into the target
    assert max(one.figures[0].random.p for one in scores.groups) <= 0.02
    noisy = planted(noise=0.3)
    assert score_groups(noisy.circuit, named(noisy.groups)).standing is Standing.BEATS


def test_nonsense_is_inconclusive_and_never_beats():
    """Groups of the right sizes and places, of nodes that do not belong together: p is as by chance."""
    truth, found = planted(noise=0.3), []
    for seed in range(12):
        groups = named(shuffled(truth.truth, 4, seed))
        found.append(score_groups(truth.circuit, groups, draws=99, seed=seed))
    assert Standing.BEATS not in {one.standing for one in found}
    assert sum(one.standing is Standing.INCONCLUSIVE for one in found) >= 10
    assert found[0].verdict.startswith("INCONCLUSIVE: ")
    assert "not told apart from a control in" in found[0].verdict
    p = np.array([[quality.random.p for quality in one.whole] for one in found])
    assert 0.3 < p.mean() < 0.7


def test_members_of_opposite_sign_are_told_though_they_are_lumpable():
    """Half of each group pushes the other way: what they read is the same, what they do cancels."""
    truth = planted(noise=0.3, conflict=True)
    scores = score_groups(truth.circuit, named(truth.groups))
    standing = {one.quality: one.standing for one in scores.whole}
    assert standing[GroupQuality.SOURCES] is Standing.BEATS
    assert standing[GroupQuality.EDGE_SIGN] is Standing.DOES_NOT_BEAT
    assert standing[GroupQuality.SHOWN] is Standing.DOES_NOT_BEAT
    assert scores.standing is Standing.DOES_NOT_BEAT
    assert scores.cancelled > 0.4
    assert "worse than a control in" in scores.verdict


def test_random_partitions_keep_sizes_and_windows_and_are_even():
    """Every draw has the given sizes within the groups' layers and positions; every node moves."""
    circuit = layered(3, layers=4, positions=2, per_layer=8)
    groups = [[0, 1, 9], [4, 5], [16, 17, 30]]
    partition = partition_of(len(circuit.nodes), groups)
    places = Places(circuit, partition)
    seen: list[set[int]] = [set() for _ in groups]
    for draw in random_partitions(places, partition, draws=300, seed=0):
        for number, nodes in enumerate(groups):
            members = np.flatnonzero(draw.label == number)
            seen[number] |= set(members.tolist())
            assert len(members) == len(nodes)
            for of in (places.layer, places.position):
                assert of[nodes].min() <= of[members].min()
                assert of[members].max() <= of[nodes].max()
            assert set(places.kind[members]) == set(places.kind[nodes])
    for number, reached in enumerate(seen):
        within = [
            node
            for node in places.candidates.tolist()
            if all(
                of[groups[number]].min() <= of[node] <= of[groups[number]].max()
                for of in (places.layer, places.position)
            )
        ]
        assert reached == set(within)


def test_the_given_partition_is_no_nearer_to_the_draws_than_they_are_to_each_other(
    monkeypatch: pytest.MonkeyPatch,
):
    """All are one walk from a common start, however short it is: that is what makes ranks p-values."""
    monkeypatch.setattr(group_controls, "_SWEEPS", 1)
    truth = planted()
    partition = partition_of(len(truth.circuit.nodes), truth.groups)
    places = Places(truth.circuit, partition)
    to_given, to_draws = [], []
    for seed in range(60):
        one, other = (draw.label for draw in random_partitions(places, partition, draws=2, seed=seed))
        to_given.append(np.mean(one[:80] == partition.label[:80]))
        to_draws.append(np.mean(one[:80] == other[:80]))
    assert np.mean(to_given) == pytest.approx(np.mean(to_draws), abs=0.03)
    assert np.mean(to_given) < 0.9


def test_groups_by_layer_are_neighbours_of_the_same_sizes():
    """At one position the members are cut along the layers: no group encloses another's layer."""
    truth = planted()
    partition = partition_of(len(truth.circuit.nodes), truth.groups)
    places = Places(truth.circuit, partition)
    draws = list(partitions_by_layer(places, partition, draws=20, seed=0))
    for draw in draws:
        assert sorted(np.bincount(draw.label[draw.label != ALONE])) == [5] * 16
        assert np.array_equal(draw.label == ALONE, partition.label == ALONE)
        spans = [places.layer[draw.label == group] for group in range(16)]
        spans.sort(key=lambda span: (span.min(), span.max()))
        assert all(a.max() <= b.min() for a, b in pairwise(spans))
    assert len({draw.label.tobytes() for draw in draws}) == 20


def test_a_group_with_nothing_to_exchange_is_inconclusive():
    """Where the only partition of the kind is the given one, p is 1."""
    circuit = layered(0, layers=2, positions=1, per_layer=2)
    scores = score_groups(circuit, named([[0, 1]]), draws=99)
    assert {one.random.p for one in scores.whole} == {1.0}
    assert scores.standing is Standing.INCONCLUSIVE


def _later_error(node: Node) -> Node:
    """Errors at position 0 are no part of the scores."""
    return replace(node, position=1) if node.kind is NodeKind.ERROR else node


def test_scores_of_a_picture_are_those_of_the_circuit_itself():
    """By circuit-tracer's definition, from stored edges: errors at position 0 are left out of either."""
    hosted = tiny_hosted("llama")
    command = DiscoverCircuit(
        prompt="When Mary went to the store John gave a drink to",
        target=LogitTarget(token=" Mary", against=" John"),
        replacement=resident_set(hosted, "skip"),
        max_feature_nodes=40,
        verify_nodes=0,
        edge_mass=1.0,
    )
    circuit = finish(discover_circuit(hosted, command))
    scores, picture = circuit.figures.scores, picture_figures(circuit)
    assert scores is not None
    assert picture.edges == circuit.edges.weight.shape[0]
    assert picture.replacement == pytest.approx(scores.replacement, rel=1e-4)
    assert picture.completeness == pytest.approx(scores.completeness, rel=1e-4)
    assert any(node.kind is NodeKind.ERROR and node.position == 0 for node in circuit.nodes)


def test_groups_that_feed_each_other_have_scores():
    """A group above and below another makes a circle of the picture; its influence is a series."""
    circuit = layered(1)
    circuit = replace(circuit, nodes=tuple(map(_later_error, circuit.nodes)))
    size = len(circuit.nodes)
    before, after = picture_figures(circuit), picture_figures(circuit, partition_of(size, [[0, 10], [5, 15]]))
    assert (after.nodes, before.nodes) == (size - 2, size)
    picture = [{10: 0, 15: 5}.get(node, node) for node in range(size)]
    ends = zip(
        *(numbers(column).tolist() for column in (circuit.edges.source, circuit.edges.target)), strict=True
    )
    assert after.edges == len({(picture[a], picture[b]) for a, b in ends if picture[a] != picture[b]})
    assert after.edges < before.edges
    for found in (before, after):
        assert found.replacement is not None
        assert found.completeness is not None
        assert 0 < found.replacement < 1
        assert 0 < found.completeness < 1
    alone = Partition(label=np.full(size, ALONE), count=0)
    assert picture_figures(circuit, alone) == before


def test_what_cannot_be_scored_is_refused(monkeypatch: pytest.MonkeyPatch):
    """No group of two nodes; too large a circuit. Groups of one node have no figures."""
    circuit = layered()
    with pytest.raises(InvalidRequestError, match="two nodes"):
        score_groups(circuit, named([[1]]))
    scores = score_groups(circuit, named([[1], [2, 3]]), draws=99)
    assert [len(one.figures) for one in scores.groups] == [0, 3]  # effects are 0: nothing to tell
    assert GroupQuality.EFFECT_SIGN not in {one.quality for one in scores.whole}
    monkeypatch.setattr(group_measures, "MOST_SCORED", 10)
    with pytest.raises(UnsupportedOptionError, match="prune it"):
        score_groups(circuit, named([[2, 3]]))


def test_scores_are_the_same_again_and_say_what_is_by_construction():
    """Seeded; groups that were found by edges are told to be measured on them."""
    truth = planted(noise=0.5, stages=2)
    groups = named(truth.groups, how="similar edges, at least 0.5 alike on average")
    first, second = (score_groups(truth.circuit, groups, draws=99, seed=3) for _ in range(2))
    assert first == second
    assert any("partly by construction" in caveat for caveat in first.caveats)
    assert not any("construction" in one for one in score_groups(truth.circuit, named(truth.groups)).caveats)


async def test_stored_groups_are_scored_whoever_made_them(tmp_path: Any):
    """By hand, and after nodes have left a group: scores are of what is said now, nothing is stored."""
    here, truth = house(tmp_path), planted()
    name = (await here.circuits.save(truth.circuit, circuit_id="c1")).name
    say = here.circuit_annotations
    with pytest.raises(InvalidRequestError, match="no group"):
        await say.group_scores(name)
    await say.group(name, "one", truth.groups[0], "ann")
    await say.group(name, "two", truth.groups[1], "ann")
    scores = await say.group_scores(name)
    assert [(one.group, one.nodes) for one in scores.groups] == [("one", 5), ("two", 5)]
    await say.group(name, "two", [*truth.groups[1], *truth.groups[0][:4]], "ann")
    assert [one.nodes for one in (await say.group_scores(name)).groups] == [1, 9]
