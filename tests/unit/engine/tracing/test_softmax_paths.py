"""Effects through the exact softmax: closed forms, completeness, Shapley values, and giving up in time."""

from __future__ import annotations

from itertools import combinations
from math import exp, factorial

import pytest
import torch

from trephine.domain.errors import NotConvergedError
from trephine.engine.tracing.softmax_paths import allocate, integrate, tilted, weights_of


def scores(seed, *shape: int, size=2.0):
    """Random scores."""
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("delta", [-6.0, -0.5, 0.3, 4.0])
def test_one_key_has_its_closed_form(delta):
    """Tilting one key changes E[g] by A (e^d - 1)(g_t - E[g]) / (1 + A (e^d - 1))."""
    before, measured = scores(0, 9), scores(1, 9)
    weights = torch.softmax(before, -1)
    shift = torch.zeros(9, dtype=torch.float64)
    shift[4] = delta
    grown = float(weights[4]) * (exp(delta) - 1)
    expected = grown * float(measured[4] - (weights * measured).sum()) / (1 + grown)
    assert float(tilted(before, shift, measured, None)) == pytest.approx(expected, rel=1e-10)


def test_a_saturated_weight_needs_the_exact_effect():
    """At a weight near 1 the gradient says next to nothing of what removing its cause does."""
    before = torch.tensor([9.0, 0.0, 0.0], dtype=torch.float64)
    measured = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    shift = torch.tensor([-9.0, 0.0, 0.0], dtype=torch.float64)
    weight = float(weights_of(before, None)[0])
    linear = weight * (1 - weight) * -9
    assert float(tilted(before, shift, measured, None)) < -0.66
    assert abs(linear) < 0.01


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_shares_of_many_causes_add_up_to_the_exact_change(softcap):
    """Law 5: parts of any number of causes add up, with and without a soft cap."""
    start, parts, measured = scores(2, 12), scores(3, 7, 12), scores(4, 12)
    path = allocate(start, parts.sum(0), measured, softcap)
    shares = parts @ path.worth
    expected = (weights_of(start + parts.sum(0), softcap) - weights_of(start, softcap)) @ measured
    assert float(path.exact) == pytest.approx(float(expected), rel=1e-12)
    assert abs(float(shares.sum() - expected)) <= 1e-3 * max(abs(float(expected)), 1e-3)
    assert float(path.total) == pytest.approx(float(shares.sum()), rel=1e-9)


def test_causes_that_favour_a_competitor_count_against_a_key():
    """Competition: what raises another key's score lowers the traced weight; its share is negative."""
    measured = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    change = torch.tensor([2.0, 1.5, 0.0], dtype=torch.float64)
    worth = allocate(torch.zeros(3), change, measured).worth
    assert worth[0] > 0 > worth[1]
    assert float(worth.sum()) == pytest.approx(0, abs=1e-12)


def test_nodes_are_doubled_until_shares_add_up():
    """Large scores turn the softmax into a step along the path: 16 nodes miss it, more do not."""
    before, change = torch.zeros(6), scores(5, 6, size=150.0)
    measured = torch.eye(6, dtype=torch.float64)[int(change.argmax())]
    errors = [
        float(
            integrate(
                before.double(),
                change,
                measured,
                tilted(before.double(), change, measured, None),
                None,
                nodes,
            ).residual
        )
        for nodes in (16, 64, 256)
    ]
    assert errors[0] > 1e-3 > errors[2]
    path = allocate(before, change, measured)
    assert path.nodes > 16
    assert float(path.residual) <= 1e-3 * float(path.exact)


def test_what_does_not_add_up_is_an_error():
    """A path that still misses the exact change at the most nodes is refused by name, never returned."""
    change = torch.tensor([4000.0, 0.0, 3999.0])
    with pytest.raises(NotConvergedError, match="with 32 nodes"):
        allocate(torch.zeros(3), change, torch.tensor([1.0, 0, 0]), most_nodes=32)


def test_shares_are_close_to_exact_shapley_values():
    """Over six causes, at random rows, Aumann-Shapley correlates with exact Shapley values above 0.95."""
    ours, exact = [], []
    for seed in range(24):
        start, parts, measured = scores(seed, 8), scores(100 + seed, 6, 8, size=1.0), scores(200 + seed, 8)
        ours += (parts @ allocate(start, parts.sum(0), measured).worth).tolist()
        exact += shapley(start, parts, measured)
    found = torch.corrcoef(torch.tensor([ours, exact]))[0, 1]
    assert float(found) > 0.95
    miss = torch.tensor(ours) - torch.tensor(exact)
    assert float(miss.square().sum() / torch.tensor(exact).square().sum()) < 0.144


def shapley(start, parts, measured):
    """Exact Shapley values of every cause, over all subsets."""
    n = len(parts)
    value = {}
    for size in range(n + 1):
        for chosen in combinations(range(n), size):
            value[chosen] = float(weights_of(start + parts[list(chosen)].sum(0), None) @ measured)
    return [
        sum(
            factorial(len(s)) * factorial(n - len(s) - 1) / factorial(n)
            * (value[tuple(sorted((*s, cause)))] - value[s])
            for s in value
            if cause not in s
        )
        for cause in range(n)
    ]  # fmt: skip
