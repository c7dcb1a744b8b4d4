"""Bootstrap intervals of correlations, slopes and means, many resamples at once; verdicts by them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.findings import Figure
from trephine.domain.verification import Standing
from trephine.engine.attribution.correlations import Statistic, pearson, ranks

_LEVELS = (0.025, 0.975)


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
