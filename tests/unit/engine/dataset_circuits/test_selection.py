"""Selection, stability, its certificate, random circuits, clusters, bootstrap shares."""

from __future__ import annotations

from math import comb, isnan

import pytest
import torch

from trephine.domain.dataset_circuits import AUTO_CLUSTERS, Discretion, Subsampling
from trephine.engine.dataset_circuits.clustering import cluster_contexts, silhouette
from trephine.engine.dataset_circuits.selection import (
    certified_edits,
    clopper_pearson_low,
    random_like,
    selected,
    stability_of,
    subsamples,
)
from trephine.engine.models.quanta import finish


def test_selection_is_by_size_within_budget_and_threshold():
    """Signs do not matter, zeros never count."""
    effects = torch.tensor([0.0, -3.0, 1.0, 2.0, -0.1])
    assert selected(effects, Discretion(nodes=2)).tolist() == [1, 3]
    assert selected(effects, Discretion(nodes=10)).tolist() == [1, 3, 2, 4]
    assert selected(effects, Discretion(nodes=10, threshold=1.0)).tolist() == [1, 3, 2]


def test_stable_nodes_are_those_that_enough_parts_select():
    """Node 0 is in every part, node 1 in 9 of 10, node 2 in 1: at 0.9 the third is abstained on."""
    parts = torch.zeros(10, 4)
    parts[:, 0] = 5
    parts[:9, 1] = 1
    parts[9, 2] = 1
    quanta = stability_of(parts.mean(0), parts, Discretion(nodes=2), Subsampling(draws=10, keep=0.9))
    found = finish(quanta)
    assert found.stable.tolist() == [0, 1]
    assert found.abstained.tolist() == [2]
    assert found.frequency.tolist() == pytest.approx([1.0, 0.9, 0.1, 0.0])


def test_what_parts_select_and_all_data_do_not_is_abstained_on():
    """One context alone lifts node 1 above node 0: all data select it, nine parts of ten the other."""
    parts = torch.tensor([[1.0, 0.0]] * 9 + [[1.0, 11.0]])
    quanta = stability_of(parts.mean(0), parts, Discretion(nodes=1), Subsampling(draws=10, keep=0.9))
    found = finish(quanta)
    assert found.stable.tolist() == []
    assert found.abstained.tolist() == [0, 1]


def test_parts_are_drawn_without_replacement_and_never_all():
    """Half of the contexts each; with two contexts, one."""
    parts = subsamples(11, Subsampling(draws=5, share=0.5), seed=1)
    assert parts.sum(1).tolist() == [6] * 5 or parts.sum(1).tolist() == [5] * 5
    assert subsamples(2, Subsampling(draws=3, share=0.9), seed=1).sum(1).tolist() == [1] * 3


def test_the_lower_bound_is_clopper_and_pearsons():
    """All of n draws: 0.05 ** (1 / n)."""
    assert clopper_pearson_low(20, 20) == pytest.approx(0.05 ** (1 / 20), abs=1e-9)
    assert clopper_pearson_low(0, 20) == 0.0
    low = clopper_pearson_low(18, 20)
    tail = sum(comb(20, k) * low**k * (1 - low) ** (20 - k) for k in (18, 19, 20))
    assert tail == pytest.approx(0.05, abs=1e-9)


def test_certified_edits_follow_from_who_is_drawn():
    """Parts of a half certify nothing; parts of a tenth do, until an exchange could tip the majority."""
    assert certified_edits(1.0, 20, 100, 50) == 0
    edits, low = certified_edits(1.0, 100, 100, 10), clopper_pearson_low(100, 100)
    assert edits > 0
    assert low - (1 - comb(100 - edits, 10) / comb(100, 10)) > 0.5
    assert low - (1 - comb(99 - edits, 10) / comb(100, 10)) <= 0.5


def test_random_circuits_have_the_layers_of_the_circuit():
    """As many per group, among nodes with an effect, and not always the same."""
    groups = torch.arange(40) // 10
    allowed = torch.arange(40) % 2 == 0
    generator = torch.Generator().manual_seed(0)
    circuit = torch.tensor([1, 2, 31])
    draws = random_like(circuit, groups, allowed, count=5, generator=generator)
    assert len(draws) == 5
    assert all(sorted((draw // 10).tolist()) == [0, 0, 3] for draw in draws)
    assert all(bool(allowed[draw].all()) and len(set(draw.tolist())) == 3 for draw in draws)
    assert len({tuple(draw.tolist()) for draw in draws}) > 1


def test_random_circuits_are_not_the_circuit_itself():
    """If the nodes with an effect are those of the circuit alone, random ones are drawn from all."""
    groups, allowed = torch.zeros(40, dtype=torch.int64), torch.zeros(40, dtype=torch.bool)
    circuit = torch.arange(5, 13)
    allowed[circuit] = True
    generator = torch.Generator().manual_seed(0)
    draws = random_like(circuit, groups, allowed, count=5, generator=generator)
    assert all(set(draw.tolist()) != set(circuit.tolist()) for draw in draws)


def planted(groups):
    """Vectors around as many random directions, and who is of which."""
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(groups, 50, generator=generator)
    of = torch.arange(60) % groups
    scale = torch.rand(60, 1, generator=generator) + 0.5
    return (centres[of] + 0.3 * torch.randn(60, 50, generator=generator)) * scale, of


def test_planted_groups_are_found_and_counted():
    """Directions count, lengths do not; the silhouette picks three."""
    vectors, of = planted(3)
    found = finish(cluster_contexts(vectors, AUTO_CLUSTERS, 0))
    assert found.count == 3
    assert {(int(a), int(b)) for a, b in zip(found.assignment, of, strict=True)}.__len__() == 3
    assert found.silhouette > found.null_silhouette + 0.2
    assert torch.equal(found.assign(vectors), found.assignment)


def test_noise_is_one_cluster():
    """Nothing beats clouds of the same covariance, so nothing is grouped."""
    noise = torch.randn(60, 50, generator=torch.Generator().manual_seed(0)) + 3
    found = finish(cluster_contexts(noise, AUTO_CLUSTERS, 0))
    assert found.count == 1
    assert isnan(found.silhouette)
    assert finish(cluster_contexts(noise, 2, 0)).count == 2


def test_the_silhouette_is_rousseeuws():
    """Three directions in a plane, by hand: a = 0 and b = 1 - 0 for the pair, 0 for the one alone."""
    directions = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    score = silhouette(directions, torch.tensor([0, 0, 1]), torch.Generator())
    assert score == pytest.approx(2 / 3)
