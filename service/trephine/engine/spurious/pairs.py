"""Texts in pairs: who is compared with whom, and a reward that is trained on what differs within a pair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from trephine.engine.erasure.logistic import fit_logistic


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

    Only pairs that are there whole; in the order in which they become so.
    """
    first, second = dict[str, int](), dict[str, int]()
    for place, one in enumerate(texts):
        if one.pair is not None:
            (second if one.label else first)[one.pair] = place
    found = [(first[pair], place) for pair, place in second.items() if pair in first]
    return torch.tensor(sorted(found, key=max), dtype=torch.long).reshape(-1, 2)


def threshold(rewards: Tensor, pairs: Tensor) -> float:
    """Return the reward that is as many standard deviations from either label's mean.

    Pairs tell no threshold of one text. Half-way between the means is right where both labels vary alike, or
    not at all.

    Args:
        rewards: `(n,)`.
        pairs: `(n_pairs, 2)`, two at least.
    """
    wide = rewards.double()[pairs]
    means, spreads = wide.mean(0), wide.std(0)
    nearer = float(spreads[0] / spreads.sum()) if spreads.sum() > 0 else 0.5
    return float(means[0] + nearer * (means[1] - means[0]))


def fit_reward(pooled: Tensor, pairs: Tensor, *, penalty: float, stock: bool = False) -> tuple[Tensor, float]:
    """Fit a linear reward by Bradley and Terry's model: P(second over first) = sigmoid(their difference).

    Every pair counts from either side, so that who stands first says nothing. A decision on one text needs a
    threshold besides. The stock form has none, so that its reward has no weight along the point half-way
    between the labels' means, and decides at 0.

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
    middle = wide[pairs].mean((0, 1))
    if stock:
        apart = _without(apart, middle)
    second = torch.ones(len(apart), dtype=torch.long)
    weight, _ = fit_logistic(
        torch.cat([apart, -apart]), torch.cat([second, 1 - second]), penalty=penalty, stock=True
    )
    if stock:
        return _without(weight, middle), 0.0
    return weight, -threshold(wide @ weight, pairs)


def _without(vectors: Tensor, direction: Tensor) -> Tensor:
    """Project a direction `(d,)` out of vectors `(..., d)`."""
    along = vectors @ direction / (direction @ direction).clamp_min(1e-300)
    return vectors - along[..., None] * direction
