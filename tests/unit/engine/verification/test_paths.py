"""What a stored graph predicts for features that are removed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.unit.app.house import circuit, node
from trephine.domain.circuits import NodeKind
from trephine.engine.verification.paths import drops, follow, graph_of, permuted

FEATURE, LOGIT, TOKEN = NodeKind.FEATURE, NodeKind.LOGIT, NodeKind.TOKEN


def chain():
    """0 (layer 0, activation 2) feeds 1 (layer 1, activation 4) and the logit; 1 feeds the logit."""
    nodes = [
        node(FEATURE, layer=0, activation=2.0),
        node(FEATURE, layer=1, activation=4.0),
        node(TOKEN, layer=-1),
        node(LOGIT, layer=2),
    ]
    return graph_of(circuit(nodes, [(0, 1, 3.0), (2, 0, 1.0), (0, 3, 5.0), (1, 3, 8.0)]))


def test_a_removal_is_followed_along_every_path():
    """The direct edge, and the edge to a feature by the share that it loses."""
    change = follow(chain(), [[0], [1]])
    # feature 1 loses 3 of 4, so that its edge of 8 loses 6; with the direct edge of 5 that is 11
    assert change[0].tolist() == [-2.0, -3.0, 0.0, -11.0]
    assert change[1].tolist() == [0.0, -4.0, 0.0, -8.0]


def test_what_is_lost_goes_on_within_a_layer():
    """A set on attention's output feeds one on the MLP of the same block: both lose, the lower one first."""
    nodes = [
        node(FEATURE, layer=0, activation=2.0),
        replace(node(FEATURE, layer=1, activation=5.0), replacement="attention"),
        replace(node(FEATURE, layer=1, activation=4.0), replacement="mlp"),
        node(LOGIT, layer=2),
    ]
    graph = graph_of(circuit(nodes, [(0, 1, 5.0), (1, 2, 3.0), (2, 3, 8.0)]))
    # all of feature 1 goes, with it 3 of feature 2's 4, and with these 6 of its edge of 8
    assert follow(graph, [[0]])[0].tolist() == [-2.0, -5.0, -3.0, -6.0]


def test_features_removed_together_are_counted_once():
    """What is removed already cannot lose more through another's path."""
    assert drops(chain(), [[0, 1]]).tolist() == [13.0]
    assert drops(chain(), [[]]).tolist() == [0.0]


def test_permuting_deals_out_weights_within_rows():
    """Every target keeps the weights that enter it; somewhere another source has them."""
    count = 12
    nodes = [node(FEATURE, layer=0, activation=1.0 + n) for n in range(count)]
    nodes += [node(FEATURE, layer=1, activation=3.0), node(LOGIT, layer=2)]
    edges = [(n, target, float(n + 100 * target)) for target in (count, count + 1) for n in range(count)]
    graph = graph_of(circuit(nodes, sorted(edges, key=lambda edge: edge[1])))
    dealt = permuted(graph, 0)
    for target in (count, count + 1):
        own = graph.target == target
        assert sorted(dealt.weight[own].tolist()) == sorted(graph.weight[own].tolist())
    assert not torch.equal(dealt.weight, graph.weight)
    every = [[n] for n in range(count)]
    assert drops(dealt, every).tolist() != pytest.approx(drops(graph, every).tolist())
