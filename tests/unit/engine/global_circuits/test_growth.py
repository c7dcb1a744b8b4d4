"""Which nodes and edges are kept, which features are candidates, and what is compared between halves."""

from __future__ import annotations

import torch

from trephine.domain.global_circuits import GlobalBounds
from trephine.engine.global_circuits.candidates import _dealt
from trephine.engine.global_circuits.coactivation import Ends
from trephine.engine.global_circuits.dictionaries import Chosen
from trephine.engine.global_circuits.growth import grow, heaviest_into, strongest_nodes
from trephine.engine.global_circuits.measured import MeasuredEdges
from trephine.engine.global_circuits.transfer import _dealt as dealt_anew
from trephine.engine.global_circuits.transfer import overlap, sampled
from trephine.engine.models.quanta import finish


class Space:
    """Three layers of three features."""

    offsets = torch.tensor([0, 3, 6, 9])
    layers = (0, 1, 2)

    def split(self, features):
        return features // 3, features % 3


def measured(weight, *, halves=None, logits=None, direction=None):
    """Edges between nine candidates, all of whose units are 1."""
    n = len(weight)
    return MeasuredEdges(
        chosen=Chosen(space=Space(), features=torch.arange(n)),
        ends=Ends(tokens=(), logits=()),
        weight=weight,
        halves=torch.stack([weight, weight]) if halves is None else halves,
        virtual=weight,
        unit=torch.ones(n),
        from_tokens=torch.zeros(0, n),
        to_logits=torch.zeros(n, 0) if logits is None else logits,
        to_direction=torch.zeros(n) if direction is None else direction,
    )


def weights(**pairs: float):
    """`a3b7=0.5`: an edge from 3 to 7."""
    found = torch.zeros(9, 9)
    for name, value in pairs.items():
        source, target = name[1:].split("b")
        found[int(source), int(target)] = value
    return found


def test_strongest_edges_bring_both_their_ends():
    """Until there is no room; an edge whose ends do not both fit is passed over for one that does."""
    shares = weights(a0b3=0.9, a4b7=0.8, a0b4=0.7, a1b8=0.6)
    assert strongest_nodes(shares, 2).tolist() == [0, 3]
    assert strongest_nodes(shares, 3).tolist() == [0, 3, 4]
    assert strongest_nodes(shares, 9).tolist() == [0, 1, 3, 4, 7, 8]


def test_growth_follows_the_strongest_path():
    """A strong edge two steps away comes before a weak one beside the start; both ways count."""
    edges = measured(weights(a0b3=-0.9, a3b7=0.8, a1b3=0.1, a2b8=1.0))
    found = finish(grow(edges, [3], 0, False, GlobalBounds(nodes=3, candidates=9)))
    assert found.features.tolist() == [0, 3, 7]
    assert sorted(zip(*(end.tolist() for end in found.between), strict=True)) == [(0, 1), (1, 2)]
    whole = finish(grow(edges, [3], 0, False, GlobalBounds(nodes=9, candidates=9)))
    assert whole.features.tolist() == [0, 1, 3, 7]  # nothing leads to 2 and 8


def test_growth_begins_below_what_is_named():
    """Of logits and a direction the features that add most come first."""
    logits = torch.zeros(9, 2)
    logits[5, 0], logits[4, 1] = -2.0, 9.0
    edges = measured(weights(a1b5=0.5), logits=logits)
    found = finish(grow(edges, [], 1, False, GlobalBounds(nodes=2, candidates=9, logits=0)))
    assert found.features.tolist() == [1, 5]
    assert found.logits.tolist() == [0]
    direction = torch.zeros(9)
    direction[2] = 1.0
    found = finish(
        grow(
            measured(weights(a2b6=0.5), direction=direction), [], 0, True, GlobalBounds(nodes=2, candidates=9)
        )
    )
    assert found.features.tolist() == [2, 6]
    assert found.to_direction.tolist() == [0]


def test_every_target_keeps_its_heaviest_edges():
    """By size, whatever the sign; targets in order; nothing of nothing."""
    weight = torch.tensor([[0.1, 0.0], [-0.5, 0.0], [0.3, -0.2]])
    source, target = heaviest_into(weight, 2)
    assert sorted(zip(target.tolist(), source.tolist(), strict=True)) == [(0, 1), (0, 2), (1, 2)]
    assert target.tolist() == sorted(target.tolist())
    assert [len(end) for end in heaviest_into(torch.zeros(0, 3), 2)] == [0, 0]


def test_budgets_are_dealt_evenly_and_whole():
    """What a layer does not have goes to the others."""
    assert _dealt([10, 10, 10], 9) == [3, 3, 3]
    assert sorted(_dealt([1, 10, 10], 11)) == [1, 5, 5]
    assert sum(_dealt([7, 0, 3], 8)) == 8
    assert _dealt([2, 2], 100) == [2, 2]


def test_weights_are_dealt_out_between_the_same_layers():
    """Edges of one pair of layers exchange theirs; those that are alone exchange among each other."""
    edges = measured(weights())
    source, target = torch.tensor([0, 1, 0, 3]), torch.tensor([3, 4, 7, 6])
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    seen = {tuple(dealt_anew(edges, source, target, weight, seed).tolist()) for seed in range(40)}
    assert seen == {(1, 2, 3, 4), (2, 1, 3, 4), (1, 2, 4, 3), (2, 1, 4, 3)}


def test_samples_span_all_weights():
    """The heaviest and the lightest are always among them."""
    weight = torch.arange(100.0) - 50
    chosen = weight[sampled(weight, 10)].abs()
    assert (float(chosen.max()), float(chosen.min())) == (50.0, 0.0)
    assert len(chosen) == 10
    assert len(sampled(weight[:3], 10)) == 3


def test_halves_overlap_by_the_edges_that_both_would_keep():
    """One of three."""
    halves = torch.stack([weights(a0b3=1.0, a1b4=1.0), weights(a0b3=1.0, a2b4=1.0)])
    edges = measured(weights(a0b3=1.0), halves=halves)
    assert overlap(edges, torch.arange(9), 1) == 1 / 3
    assert overlap(measured(weights()), torch.arange(9), 1) is None
