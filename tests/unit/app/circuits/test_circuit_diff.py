"""Differences of two circuits, against sets and dictionaries."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tests.circuits_of_sets import ATTENTION, MLPS, circuit_of_sets
from tests.layered_circuits import layered
from tests.unit.app.circuits.test_circuit_queries import edges_of
from tests.unit.app.house import TOKEN
from trephine.app.circuits.circuit_diff import compare, same_targets
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuits import Circuit, NodeKind
from trephine.domain.error_sites import error_number
from trephine.domain.sites import Site, SiteKind
from trephine.domain.targets import (
    AttentionScore,
    DirectionValue,
    ExplainedTarget,
    FeatureValue,
    GraphTarget,
    TargetKind,
    TokenLogits,
)


def keyed(graph: Circuit, summed: bool) -> tuple[Counter, Counter]:
    """Influence by node key, and weight by pair of keys."""
    keys = [(n.kind, n.layer, n.feature, None if summed else n.position) for n in graph.nodes]
    nodes, edges = Counter(), Counter()
    for key, node in zip(keys, graph.nodes, strict=True):
        nodes[key] += node.influence
    for source, target, weight in edges_of(graph):
        edges[keys[source], keys[target]] += weight
    return nodes, edges


@pytest.mark.parametrize("summed", [False, True])
def test_nodes_and_edges_are_matched_as_by_dictionaries(summed):
    """In both, in the first only, in the second only, with influences and weights of each side."""
    graphs = layered(1), layered(2)
    found = compare(*graphs, sum_positions=summed)
    sides = [keyed(graph, summed) for graph in graphs]
    place = [
        (one.node.kind, one.node.layer, one.node.feature, None if summed else one.node.position)
        for one in found.nodes
    ]
    assert len(place) == len(set(place)) == len(sides[0][0].keys() | sides[1][0].keys())
    for key, one in zip(place, found.nodes, strict=True):
        for (nodes, _), side in zip(sides, (one.first, one.second), strict=True):
            assert (side is not None) == (key in nodes)
            if side is not None:
                assert side.influence == pytest.approx(nodes[key])
    assert {(place[e.source], place[e.target]) for e in found.edges} == sides[0][1].keys() | sides[1][
        1
    ].keys()
    for edge in found.edges:
        for (_, edges), weight in zip(sides, (edge.first, edge.second), strict=True):
            key = place[edge.source], place[edge.target]
            assert (weight is not None) == (key in edges)
            assert (weight or 0.0) == pytest.approx(edges[key], abs=1e-6)
    changes = [abs((edge.second or 0.0) - (edge.first or 0.0)) for edge in found.edges]
    assert changes == sorted(changes, reverse=True)
    assert [abs(one.change) for one in found.nodes] == sorted(
        (abs(n.change) for n in found.nodes), reverse=True
    )


def test_a_circuit_does_not_differ_from_itself():
    """Every overlap is 1, every change 0."""
    found = compare(layered(3), layered(3), sum_positions=False)
    overlap = {figure.name: figure.value for figure in found.overlap}
    assert overlap["feature_jaccard"] == overlap["edge_overlap_by_weight"] == 1
    assert overlap["feature_overlap_by_influence"] == pytest.approx(1)
    assert all(one.change == 0 for one in found.nodes)


def test_errors_of_two_sites_in_one_layer_are_two_nodes():
    """The error of a layer's attention output is not added to that of its MLP."""
    one = layered(3)
    (index, error) = next((n, node) for n, node in enumerate(one.nodes) if node.kind is NodeKind.ERROR)
    second = replace(error, feature=error_number(SiteKind.ATTN_OUT), influence=0.25)
    both = replace(one, nodes=(*one.nodes[: index + 1], second, *one.nodes[index + 1 :]))
    for summed in (False, True):
        found = compare(both, both, sum_positions=summed)
        errors = [each for each in found.nodes if each.node.kind is NodeKind.ERROR]
        assert len(errors) == len({n for n in both.nodes if n.kind is NodeKind.ERROR})
        assert all(each.first is not None and each.first.count == 1 for each in errors)


def test_features_of_other_sets_never_match():
    """The same layer and index of another set is another feature; tokens and targets match all the same."""
    other = layered(3)
    nodes = tuple(replace(n, replacement="sae") if n.kind is NodeKind.FEATURE else n for n in other.nodes)
    found = compare(layered(3), replace(other, nodes=nodes), sum_positions=False)
    both = {one.node.kind for one in found.nodes if one.first and one.second}
    assert both == {NodeKind.ERROR, NodeKind.TOKEN, NodeKind.LOGIT}


def test_sets_of_one_name_are_told_apart_by_their_content():
    """Other contents of the same name never match; where one circuit does not say, the name has to do."""
    found_with = layered(3)
    nodes = tuple(
        replace(n, replacement="sae") if n.kind is NodeKind.FEATURE else n for n in found_with.nodes
    )
    one, other, old = (
        replace(found_with, replacement="sae", nodes=nodes, set_hash=content) for content in ("a", "b", "")
    )

    def in_both(first: Circuit, second: Circuit) -> set[NodeKind]:
        compared = compare(first, second, sum_positions=False).nodes
        return {each.node.kind for each in compared if each.first and each.second}

    assert NodeKind.FEATURE not in in_both(one, other)
    assert {NodeKind.ERROR, NodeKind.TOKEN, NodeKind.LOGIT} <= in_both(one, other)
    assert NodeKind.FEATURE in in_both(one, one)
    assert NodeKind.FEATURE in in_both(one, old)
    assert NodeKind.FEATURE in in_both(old, other)


@pytest.mark.parametrize(
    ("first", "second", "units"),
    [(True, True, "logits"), (False, False, ""), (True, False, None), (False, True, None)],
)
def test_baselines_are_compared_in_their_own_units(first, second, units):
    """A score has none; what has none is not set beside logits."""
    sides = [layered(3) if logits else score(1, 3, 0) for logits in (first, second)]
    figures = {pair[0].name: pair for pair in compare(*sides, sum_positions=False).figures}
    assert ("baseline" in figures) == (units is not None)
    assert {one.unit for one in figures.get("baseline", ())} == ({units} if units is not None else set())
    assert "selected_share" in figures


def explaining(name: str, layer: int = 1, told: str | None = None, **changes: object) -> Circuit:
    """A circuit over two sets that explains feature 5 of one; `told` is what its target says of the set."""
    plain = circuit_of_sets()
    target = ExplainedTarget(
        kind=TargetKind.FEATURE,
        label=f"feature {layer}:5 at position 0",
        position=0,
        share=1.0,
        value=1.0,
        replacement=name if told is None else told,
    )
    nodes = tuple(replace(node, feature=5) if node.kind is NodeKind.LOGIT else node for node in plain.nodes)
    asked = FeatureValue(layer=layer, index=5, replacement=name)
    return replace(plain, nodes=nodes, targets=(target,), **{"asked": asked, **changes})


@pytest.mark.parametrize(
    ("first", "second", "alike"),
    [
        (explaining(MLPS), explaining(MLPS), True),
        (explaining(MLPS), explaining(ATTENTION), False),
        (explaining(MLPS), explaining(MLPS, layer=0), False),
        (explaining(MLPS), explaining(MLPS, set_hash="d" * 64), False),  # another set of that name
        (explaining(MLPS), explaining(MLPS, set_hash=""), True),
        (explaining(MLPS), explaining(MLPS, told=""), True),  # stored before targets said it
        (explaining(MLPS, told=""), explaining(ATTENTION, told=""), False),
        (explaining(MLPS), explaining("", told=""), True),  # the first set was asked by no name
        (explaining(MLPS), explaining(ATTENTION, asked=None), True),  # by what people are told
        (explaining(MLPS), circuit_of_sets(), False),
    ],
)
@pytest.mark.parametrize("summed", [False, True])
def test_features_that_are_explained_are_matched_by_their_set(first, second, alike, summed):
    """The same index of another set, layer or content is another target, whatever is shown of it."""
    assert same_targets(first, second) == same_targets(second, first) == alike
    found = compare(first, second, sum_positions=summed)
    targets = [each for each in found.nodes if each.node.kind is NodeKind.LOGIT]
    assert [each.first is not None and each.second is not None for each in targets] == (
        [True] if alike else [False, False]
    )


def behind(asked: GraphTarget, *, shown: int = 7, name: str = "", tokens: tuple[int, ...] = ()) -> Circuit:
    """A circuit that explains one target, whose node shows a number; at the last position."""
    plain = layered(3)
    kind = {FeatureValue: TargetKind.FEATURE, DirectionValue: TargetKind.DIRECTION}.get(type(asked))
    kind = TargetKind.ATTENTION if isinstance(asked, AttentionScore) else kind or TargetKind.LOGIT
    token, against = (*(replace(TOKEN, id=n) for n in tokens), None, None)[:2]
    target = ExplainedTarget(
        kind=kind, label=name or kind.value, position=2, share=1.0, value=1.0, token=token, against=against
    )
    nodes = tuple(
        replace(node, feature=shown) if node.kind is NodeKind.LOGIT else node for node in plain.nodes
    )
    return replace(plain, nodes=nodes, targets=(target,), asked=asked)


def choice(*tokens: int) -> Circuit:
    """A logit, or the difference of two."""
    asked = LogitTarget(token=f"#{tokens[0]}", against=f"#{tokens[1]}" if len(tokens) > 1 else None)
    return behind(asked, shown=tokens[0], tokens=tokens)


def along(*vector: float, kind: SiteKind = SiteKind.RESID_POST, layer: int = 1, name: str = "x") -> Circuit:
    """A direction of the stream."""
    return behind(DirectionValue(site=Site(kind=kind, layer=layer), vector=vector), shown=-1, name=name)


def score(layer: int, head: int, key: int) -> Circuit:
    """A head's score of a key."""
    return behind(AttentionScore(layer=layer, head=head, key=key), shown=head)


@pytest.mark.parametrize(
    ("first", "second", "alike", "alike_summed"),
    [
        (choice(7), choice(7), True, True),
        (choice(7, 9), choice(7, 9), True, True),
        (choice(7, 9), choice(7), False, False),
        (choice(7, 9), choice(7, 8), False, False),
        (choice(7), behind(TokenLogits(tokens=("#7",)), tokens=(7,)), True, True),  # asked another way
        (along(1.0, 2.0), along(1.0, 2.0, name="y"), True, True),  # called something else
        (along(1.0, 2.0), along(1.0, 2.5), False, False),
        (along(1.0, 2.0), along(1.0, 2.0, layer=2), False, False),
        (along(1.0, 2.0), along(1.0, 2.0, kind=SiteKind.RESID_MID), False, False),
        (score(1, 3, 0), score(1, 3, 0), True, True),
        (score(1, 3, 0), score(2, 3, 0), False, False),
        (score(1, 3, 0), score(1, 3, 1), False, True),  # a key is a position
        (score(1, 7, 0), choice(7), False, False),
        (choice(7, 9), replace(choice(7), asked=None), False, False),  # its tokens say so
    ],
)
def test_targets_of_other_kinds_are_matched_by_what_they_are(first, second, alike, alike_summed):
    """By tokens, direction and place, head and key: never by the number that their nodes show alone."""
    if second.asked is not None:
        assert same_targets(first, second) == same_targets(second, first) == alike
    for summed, expected in ((False, alike), (True, alike_summed)):
        found = compare(first, second, sum_positions=summed)
        targets = [each for each in found.nodes if each.node.kind is NodeKind.LOGIT]
        assert [each.first is not None and each.second is not None for each in targets] == (
            [True] if expected else [False, False]
        )
