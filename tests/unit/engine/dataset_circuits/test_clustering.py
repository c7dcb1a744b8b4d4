"""Clusters are found where there are some, and not where effects merely go together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trephine.domain.dataset_circuits import AUTO_CLUSTERS
from trephine.engine.dataset_circuits.clustering import cluster_contexts
from trephine.engine.models.quanta import finish

SEEDS = (0, 1, 2)
CONTEXTS, NODES = 24, 30


def noise(seed: int, *size: int) -> Tensor:
    """Independent normal values."""
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def correlated(seed: int) -> Tensor:
    """One cloud: nodes go together along three directions, as effects do."""
    return noise(seed, CONTEXTS, 3) @ noise(105, 3, NODES) + 0.3 * noise(seed + 50, CONTEXTS, NODES)


def continuum(seed: int) -> Tensor:
    """Every mixture of two directions, evenly."""
    share = torch.rand(CONTEXTS, 1, generator=torch.Generator().manual_seed(seed))
    ends = noise(105, 2, NODES)
    return share * ends[0] + (1 - share) * ends[1] + 0.1 * noise(seed + 50, CONTEXTS, NODES)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("cloud", [correlated, continuum])
def test_what_goes_together_is_no_group(cloud, seed):
    """A cloud and a continuum are one cluster each."""
    assert finish(cluster_contexts(cloud(1000 + seed), AUTO_CLUSTERS, seed)).count == 1


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("common", [0.0, 2.0])
def test_groups_of_correlated_effects_are_found(groups, common):
    """Each a cloud of its own around its own direction, and around what all contexts have in common."""
    of = torch.arange(CONTEXTS) % groups
    within = 0.2 * noise(7, CONTEXTS, 3) @ noise(8, 3, NODES) + 0.1 * noise(9, CONTEXTS, NODES)
    found = finish(cluster_contexts(noise(3, groups, NODES)[of] + common + within, AUTO_CLUSTERS, 0))
    assert found.count == groups
    pairs = {(int(a), int(b)) for a, b in zip(found.assignment, of, strict=True)}
    assert len(pairs) == groups
    assert found.silhouette > found.null_silhouette


def test_a_few_contexts_of_another_kind_are_a_group():
    """One in six, by direction: sizes need not be even."""
    of = (torch.arange(CONTEXTS) % 6 == 0).long()
    vectors = noise(3, 2, NODES)[of] + 0.3 * noise(4, CONTEXTS, NODES)
    assert sorted(
        torch.bincount(finish(cluster_contexts(vectors, AUTO_CLUSTERS, 0)).assignment).tolist()
    ) == [
        4,
        20,
    ]


def test_many_nodes_and_few_contexts_take_the_span_only():
    """As sketches are: the clouds live in the span of the contexts, and two groups are still found."""
    of = torch.arange(16) % 2
    vectors = noise(3, 2, 4096)[of] + 0.5 * noise(4, 16, 4096)
    assert finish(cluster_contexts(vectors, AUTO_CLUSTERS, 0)).count == 2


def test_contexts_that_are_all_the_same_are_one_cluster():
    """Nothing to divide, and no exception."""
    assert finish(cluster_contexts(torch.ones(6, 4), AUTO_CLUSTERS, 0)).count == 1


@pytest.mark.parametrize("wanted", [2, 4, 6])
def test_no_cluster_is_empty(wanted):
    """Contexts of two directions are two clusters, and of one direction one, however many are wanted."""
    of = torch.arange(6) % 2
    found = finish(cluster_contexts(noise(3, 2, NODES)[of], wanted, 0))
    assert found.count == 2
    assert torch.bincount(found.assignment).tolist() == [3, 3]
    alike = finish(cluster_contexts(noise(3, 1, NODES).expand(6, -1), wanted, 0))
    assert (alike.count, alike.assignment.tolist()) == (1, [0] * 6)
    assert alike.assign(noise(4, 3, NODES)).tolist() == [0, 0, 0]


def test_every_context_can_be_a_cluster():
    """As many clusters as contexts, of one each."""
    found = finish(cluster_contexts(noise(3, 4, NODES), 4, 0))
    assert sorted(found.assignment.tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("noise_size", [0.0, 1e-7, 1e-5, 1e-3])
def test_contexts_that_hardly_differ_are_one_cluster(noise_size):
    """Lengths apart they are the same up to a little: a silhouette is one, and never of roundings."""
    lengths = 1 + torch.rand(12, 1, generator=torch.Generator().manual_seed(1))
    vectors = lengths * (noise(3, 1, NODES) + noise_size * noise(4, 12, NODES))
    assert finish(cluster_contexts(vectors, AUTO_CLUSTERS, 0)).count == 1
    cut = finish(cluster_contexts(vectors, 2, 0))
    assert cut.count == 1 or -1 <= cut.silhouette <= 1


def test_two_contexts_are_one_cluster():
    """Nothing is said of how well they part: there was nothing to hold that against."""
    found = finish(cluster_contexts(noise(3, 2, NODES), AUTO_CLUSTERS, 0))
    assert (found.count, found.assignment.tolist()) == (1, [0, 0])


def test_contexts_without_any_effect_are_one_cluster():
    """All zeros, or zeros beside effects of one direction: no direction, no group of its own by chance."""
    assert finish(cluster_contexts(torch.zeros(6, NODES), AUTO_CLUSTERS, 0)).count == 1
    assert finish(cluster_contexts(torch.zeros(6, NODES), 3, 0)).count == 1
