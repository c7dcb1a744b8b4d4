"""Statistics of a contrast, feature by feature: AUROC, permutation p, Benjamini-Hochberg q."""

from __future__ import annotations

import torch
from torch import Tensor

_PERMUTATIONS = 256
"""Permutations in one matrix product."""


def auroc(first: Tensor, second: Tensor) -> Tensor:
    """Return P(first > second) + P(equal) / 2 for every feature.

    Args:
        first: `(n_first, n_features)`.
        second: `(n_second, n_features)`.

    Returns:
        `(n_features,)`, float64; 0.5 says nothing.
    """
    wins = torch.zeros(first.shape[1], dtype=torch.float64)
    for row in first:
        wins += (row > second).sum(0).double() + (row == second).sum(0).double() / 2
    return wins / (len(first) * len(second))


def permutation_p(values: Tensor, n_first: int, *, permutations: int, seed: int) -> Tensor:
    """Return the two-sided p of the difference of means, (1 + #) / (permutations + 1).

    The same relabelings are used for every feature, so that features can be compared.

    Args:
        values: `(n_texts, n_features)`, the first side's texts in front.
        n_first: Texts of the first side.
        permutations: Random relabelings.
        seed: Of the relabelings.

    Returns:
        `(n_features,)`, float64.
    """
    values = values.double()
    n = len(values)
    observed = (values[:n_first].mean(0) - values[n_first:].mean(0)).abs()
    # Rounding must not make a relabeling that is the observed one look smaller than it.
    bar = observed - 1e-9 * values.abs().amax(0)
    generator = torch.Generator().manual_seed(seed)
    reached = torch.zeros(values.shape[1], dtype=torch.int64)
    for start in range(0, permutations, _PERMUTATIONS):
        count = min(_PERMUTATIONS, permutations - start)
        order = torch.rand(count, n, generator=generator).argsort(1)
        weights = torch.full((count, n), -1.0 / (n - n_first), dtype=torch.float64)
        weights.scatter_(1, order[:, :n_first], 1.0 / n_first)
        reached += ((weights @ values).abs() >= bar).sum(0)
    return (1 + reached).double() / (permutations + 1)


def benjamini_hochberg(p_values: Tensor) -> Tensor:
    """Return q-values `(n,)`: the smallest false discovery rate at which each would be reported."""
    n = len(p_values)
    if n == 0:
        return p_values
    order = p_values.argsort(descending=True, stable=True)
    scaled = p_values[order] * n / torch.arange(n, 0, -1, dtype=p_values.dtype)
    q_values = torch.empty_like(p_values)
    q_values[order] = scaled.cummin(0).values.clamp_max(1.0)
    return q_values
