"""Texts in pairs: who is compared with whom, and a reward that is trained on what differs within a pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from trephine.engine.spurious.logistic import fit_logistic


class Compared(Protocol):
    """A text that may stand in a pair."""

    @property
    def label(self) -> int:
        """0 or 1."""

    @property
    def pair(self) -> str | None:
        """Its name."""


def partners(texts: Sequence[Compared]) -> Tensor:
    """Return places of the first label's text and of the second's, int64 `(n_pairs, 2)`.

    Only pairs that are there whole; in the order of their second text.
    """
    first, second = dict[str, int](), dict[str, int]()
    for place, one in enumerate(texts):
        if one.pair is not None:
            (second if one.label else first)[one.pair] = place
    found = [(first[pair], place) for pair, place in second.items() if pair in first]
    return torch.tensor(found, dtype=torch.long).reshape(-1, 2)


def pair_means(vectors: Tensor, pairs: Tensor) -> Tensor:
    """Return the mean of every vector's pair, `(n, d)`: `pairs (n_pairs, 2)` hold each of the `n` once."""
    return vectors[pairs].mean(1)[numbered(pairs)]


def numbered(pairs: Tensor) -> Tensor:
    """Return the number of every text's pair, `(n,)`; `pairs (n_pairs, 2)` hold each of the `n` once."""
    numbers = torch.empty(pairs.numel(), dtype=torch.long)
    numbers[pairs] = torch.arange(len(pairs))[:, None]
    return numbers


def half_way(pooled: Tensor, pairs: Tensor) -> Tensor:
    """Return the point half-way between the two labels' means, float64 `(d,)`."""
    return pooled.double()[pairs].mean((0, 1))


def fit_reward(pooled: Tensor, pairs: Tensor, *, penalty: float, stock: bool = False) -> tuple[Tensor, float]:
    """Fit a linear reward by Bradley and Terry's model: P(second over first) = sigmoid(their difference).

    Every pair counts from either side, so that who stands first says nothing. A decision on one text needs a
    threshold, which pairs do not tell: it is that of the point half-way between the labels' means. The stock
    form has none, so that the reward has no weight along that point instead.

    Args:
        pooled: `(n, d)`.
        pairs: `(n_pairs, 2)`, places of the first label's text and of the second's.
        penalty: As of `fit_logistic`.
        stock: No bias.

    Returns:
        float64 weight `(d,)` and bias: above 0 is the second label.
    """
    wide = pooled.double()
    apart = wide[pairs[:, 1]] - wide[pairs[:, 0]]
    middle = half_way(pooled, pairs)
    if stock:
        apart = _without(apart, middle)
    second = torch.ones(len(apart), dtype=torch.long)
    weight, _ = fit_logistic(
        torch.cat([apart, -apart]), torch.cat([second, 1 - second]), penalty=penalty, stock=True
    )
    if stock:
        return _without(weight, middle), 0.0
    return weight, -float(weight @ middle)


def _without(vectors: Tensor, direction: Tensor) -> Tensor:
    """Project a direction `(d,)` out of vectors `(..., d)`."""
    along = vectors @ direction / (direction @ direction).clamp_min(1e-300)
    return vectors - along[..., None] * direction
