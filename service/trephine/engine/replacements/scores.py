"""Figures with intervals: ratios of sums over contexts, resampled by context.

SAEBench's scores (0.6.0) are such ratios: (CE_ablated - CE_spliced) / (CE_ablated - CE_plain) and
(KL_ablated - KL_spliced) / KL_ablated. Contexts are resampled whole, since their tokens depend on one
another; two figures that are compared are resampled together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.findings import Figure
from trephine.engine.replacements.positions import LATER, Rows

_NOTHING = 1e-6
"""A denominator below this (nats, or variance per token) is rounding: the figure is then no number."""
_ROWS = 8
"""Positions that are scored at once."""
_QUANTILES = (0.025, 0.975)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A figure as numerator and denominator per context, float64 `(contexts,)` each."""

    numerator: Tensor
    denominator: Tensor

    @property
    def value(self) -> float:
        """The ratio of the sums; NaN where the denominator is nothing but rounding."""
        below = float(self.denominator.sum())
        if abs(below) < _NOTHING * len(self.denominator):
            return float("nan")
        return float(self.numerator.sum()) / below


def mean_of(values: Tensor, weights: Tensor) -> Ratio:
    """Return the mean of contexts' means as a ratio: a context weighs as the positions that it has."""
    return Ratio(numerator=values * weights, denominator=weights)


def mean_value(ratios: Sequence[Ratio]) -> float:
    """Return the mean of ratios; NaN where one is no number."""
    return sum(ratio.value for ratio in ratios) / len(ratios)


class Bootstrap:
    """Resamples of contexts, the same for every figure (seeded)."""

    def __init__(self, contexts: int, samples: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._chosen = torch.randint(contexts, (samples, contexts), generator=generator)

    def figure(self, name: str, ratio: Ratio, unit: str = "") -> Figure:
        """Return a figure with its 95 % percentile interval."""
        return _figure(name, ratio.value, self._resampled(ratio), unit)

    def mean(self, name: str, ratios: Sequence[Ratio]) -> Figure:
        """Return the mean of several ratios over the same contexts, those of all layers say."""
        return _figure(name, mean_value(ratios), self._mean(ratios), "")

    def difference(self, name: str, first: Ratio, second: Ratio) -> Figure:
        """Return first minus second, paired over contexts."""
        return self.difference_of_means(name, [first], [second])

    def difference_of_means(self, name: str, first: Sequence[Ratio], second: Sequence[Ratio]) -> Figure:
        """Return the mean of the first ratios minus that of the second, paired over contexts."""
        value = mean_value(first) - mean_value(second)
        return _figure(name, value, self._mean(first) - self._mean(second), "")

    def _mean(self, ratios: Sequence[Ratio]) -> Tensor:
        """Return the mean of the resampled ratios, `(samples,)`."""
        return torch.stack([self._resampled(ratio) for ratio in ratios]).mean(0)

    def _resampled(self, ratio: Ratio) -> Tensor:
        return ratio.numerator[self._chosen].sum(1) / ratio.denominator[self._chosen].sum(1)


def _figure(name: str, value: float, resampled: Tensor, unit: str) -> Figure:
    if value != value or not bool(torch.isfinite(resampled).all()):
        return Figure(name=name, value=value, unit=unit)
    low, high = torch.quantile(resampled, torch.tensor(_QUANTILES, dtype=resampled.dtype)).tolist()
    return Figure(name=name, value=value, low=low, high=high, unit=unit)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunScore:
    """One run of one context against the plain run: means over its scored positions."""

    ce: float
    """Nats per token."""
    kl: float
    """KL(plain || this), nats per token."""
    top1: float
    """Share of positions with the plain run's first choice."""
    positions: int
    """Scored positions, which the context weighs by."""


class PlainRun:
    """The plain run of a context, to score others against. Position 0 predicts nothing that counts.

    Args:
        ids: The context.
        logits: `(n_pos, d_vocab)`, float32.
        rows: Positions whose predictions count. The last one of a context predicts nothing that is known.
    """

    def __init__(self, ids: tuple[int, ...], logits: Tensor, rows: Rows = LATER) -> None:
        last = len(ids) - 1
        self._scored = slice(1, last) if isinstance(rows, slice) else rows[rows < last]
        self._next = torch.tensor(ids[1:])[self._scored].to(logits.device)
        self._logits = logits[self._scored]
        self._slices = [slice(start, start + _ROWS) for start in range(0, len(self._logits), _ROWS)]
        self._lse = torch.cat([self._logits[rows].logsumexp(-1) for rows in self._slices])
        self._top = self._logits.argmax(-1)

    def score(self, logits: Tensor) -> RunScore:
        """Score a run's logits `(n_pos, d_vocab)`, a few positions at a time so that they stay in the cache.

        KL = lse(q) - lse(p) - E_p[q - p] in logits: one pass, and exactly 0 for equal logits. The plain
        run's first choice is this run's, too, if no logit is above it.
        """
        q = logits[self._scored]
        parts = [self._score(q[rows], rows) for rows in self._slices]
        ce, kl, same = (float(torch.cat(part).double().mean()) for part in zip(*parts, strict=True))
        return RunScore(ce=ce, kl=kl, top1=same, positions=len(q))

    def _score(self, q: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return cross-entropy, KL and agreement, `(positions,)` each."""
        highest = q.amax(-1)
        lse, plain, plain_lse = q.logsumexp(-1), self._logits[rows], self._lse[rows]
        ce = lse - q.gather(1, self._next[rows, None])[:, 0]
        p = (plain - plain_lse[:, None]).exp_()
        kl = (lse - plain_lse - torch.linalg.vecdot(p, q - plain)).clamp_min(0.0)
        same = q.gather(1, self._top[rows, None])[:, 0] == highest
        return ce, kl, same
