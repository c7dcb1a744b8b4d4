"""Rank correlations and slopes with bootstrap intervals, many resamples at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.findings import Figure
from trephine.domain.verification import Standing

Statistic = Callable[[Tensor, Tensor], Tensor]
"""Of `x (..., n)` and `y (..., n)`: `(...,)`."""
_LEVELS = (0.025, 0.975)
_AT_ONCE = 1 << 22
"""Comparisons of two values held at once while ranking; 32 MiB in float64."""


def ranks(values: Tensor) -> Tensor:
    """Rank along the last dimension, ties averaged: float64 of the same shape, NaN where any is no number."""
    flat = values.reshape(-1, values.shape[-1])
    size = max(1, _AT_ONCE // values.shape[-1] ** 2)
    parts = [
        (part[:, :, None] > part[:, None, :]).sum(-1).double()
        + (part[:, :, None] == part[:, None, :]).sum(-1).double() / 2
        for part in flat.split(size)
    ]
    known = values.isfinite().all(-1, keepdim=True)  # comparing with NaN is always false, and would rank it
    return torch.where(known, torch.cat(parts).reshape(values.shape), torch.nan)


def spearman(x: Tensor, y: Tensor) -> Tensor:
    """Spearman's rank correlation along the last dimension; 0 where one side is constant."""
    return pearson(ranks(x), ranks(y))


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation along the last dimension; 0 where one side is constant."""
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    norm = a.norm(dim=-1) * b.norm(dim=-1)
    return torch.where(norm == 0, 0.0, (a * b).sum(-1) / norm.clamp_min(1e-300))


def slope(x: Tensor, y: Tensor) -> Tensor:
    """Least-squares slope of y on x through 0, along the last dimension; 0 where x is all zero."""
    square = (x * x).sum(-1)
    return torch.where(square > 0, (x * y).sum(-1) / square.clamp_min(1e-300), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """Resamples of ablations, the same for everything that is compared."""

    samples: int
    seed: int

    def draws(self, count: int) -> Tensor:
        """Return int64 `(samples, count)`."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(count, (self.samples, count), generator=generator)

    def figure(self, name: str, statistic: Statistic, x: Tensor, y: Tensor, unit: str = "") -> Figure:
        """Estimate a statistic of pairs with a percentile interval of 95 %."""
        draws = self.draws(len(x))
        return self._figure(name, statistic(x, y), statistic(x[draws], y[draws]), unit)

    def mean(self, name: str, values: Tensor) -> Figure:
        """Estimate a mean `(n,)`."""
        return self._figure(name, values.mean(), values[self.draws(len(values))].mean(-1), "")

    def ratio(self, name: str, above: Tensor, below: Tensor) -> Figure:
        """Estimate sum(above) / sum(below), resampled together."""
        draws = self.draws(len(above))
        resampled = above[draws].sum(-1) / below[draws].sum(-1).clamp_min(1e-300)
        return self._figure(name, above.sum() / below.sum().clamp_min(1e-300), resampled, "")

    def difference(self, name: str, better: Paired, worse: Paired, y: Tensor) -> Figure:
        """Estimate the difference of two rank correlations with the same measurements `y (n,)`."""
        draws = self.draws(len(y))
        point = better.correlation(y) - worse.correlation(y)
        resampled = better.correlation(y, draws) - worse.correlation(y, draws)
        return self._figure(name, point, resampled, "")

    def _figure(self, name: str, value: Tensor, resampled: Tensor, unit: str) -> Figure:
        low, high = resampled.double().quantile(torch.tensor(_LEVELS, dtype=torch.float64)).tolist()
        return Figure(name=name, value=float(value), low=low, high=high, unit=unit)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """What a predictor says of every ablation; several versions of it are averaged after correlating."""

    versions: Tensor
    """`(versions, n)`."""
    signed: bool = True
    """False compares absolute values."""

    def correlation(self, y: Tensor, draws: Tensor | None = None) -> Tensor:
        """Correlate with `y (n,)`, or with its resamples `draws (samples, n)`."""
        if not self.signed:
            y = y.abs()
        versions = self.versions if self.signed else self.versions.abs()
        ranked = ranks(y if draws is None else y[draws])
        found = [pearson(ranks(one if draws is None else one[draws]), ranked) for one in versions]
        return torch.stack(found).mean(0)


def standing(difference: Figure, *, identical: bool = False) -> Standing:
    """Judge a paired difference: only an interval above 0 is a pass, only one at or below 0 a defeat."""
    if identical or (difference.high is not None and difference.high <= 0):
        return Standing.DOES_NOT_BEAT
    if difference.low is not None and difference.low > 0:
        return Standing.BEATS
    return Standing.INCONCLUSIVE
