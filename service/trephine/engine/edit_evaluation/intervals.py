"""Intervals of 95 % that hold over few texts or items.

A percentile bootstrap of eight texts holds 85 to 90 % and not 95, and of damage, which is skewed, nearly all
of what it misses lies above: a bound would be called kept too often. So a mean is studentised: every resample
is held against its own error (Efron and Tibshirani 1993, chapter 12). The tails that are cut off are as much
smaller as Student's t is wider than the normal (after Hesterberg 2015), and what comes out is never narrower
than the percentiles, widened in the same way. Shares of few items have closed forms that hold: units that
were not seen are added to those that were (Agresti and Coull 1998; Bonett and Price 2012 for paired ones).

No interval tells of what no text showed: a damage that is exactly 0 on all of them has the interval 0 to 0.
"""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch import Tensor

_NORMAL = NormalDist()
_Z = _NORMAL.inv_cdf(0.975)
_TAIL = 0.025
_SMALLEST_ERROR = 1 / 6
"""Of the error over all units: a resample of nothing but one value would else be infinitely far away."""

Ends = tuple[float, float]


def widened(units: int) -> float:
    """Return by what factor an interval over so few is wider than resampling them says; 1 of one alone.

    Student's quantile by its expansion (Abramowitz and Stegun 26.7.5), right to 0.001 from 8 units on.
    """
    if units < 2:
        return 1.0
    z, degrees = _Z, units - 1
    student = (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )
    return float(student / z * (units / degrees) ** 0.5)


def of_ratio(above: Tensor, below: Tensor, draws: Tensor) -> tuple[float, Ends]:
    """Estimate `sum(above) / sum(below)` of `(units,)`, drawn together; a mean is one over ones.

    Args:
        above: What is counted.
        below: What it is counted in.
        draws: Units by resample, `(resamples, units)`.
    """
    point, error = _ratio(above, below)
    drawn, errors = _ratio(above[draws], below[draws])
    low, high = _quantiles(drawn, _TAIL)
    value = float(point)
    if not bool(torch.isfinite(torch.cat([drawn, errors, point[None], error[None]])).all()):
        return value, (low, high)
    wider = widened(len(above))
    low, high = value + wider * (low - value), value + wider * (high - value)
    if error > 0:
        far = (drawn - point) / errors.clamp(min=float(error) * _SMALLEST_ERROR)
        below_it, above_it = _quantiles(far, 1 - _NORMAL.cdf(wider * _Z))
        low, high = min(low, value - above_it * float(error)), max(high, value - below_it * float(error))
    return value, (min(low, value), max(high, value))


def of_share(seen: Tensor, draws: Tensor) -> tuple[float, Ends]:
    """Estimate the mean of zeros and ones."""
    return _adjusted(seen, draws, unseen=(0.0, 0.0, 1.0, 1.0), least=0.0)


def of_change(seen: Tensor, draws: Tensor) -> tuple[float, Ends]:
    """Estimate the mean change of zeros and ones: minus one, zero or one of each."""
    return _adjusted(seen, draws, unseen=(-1.0, 1.0), least=-1.0)


def _ratio(above: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ratio over the last dimension and its standard error, to first order."""
    units = above.shape[-1]
    ratio = above.sum(-1) / below.sum(-1)
    if units < 2:
        return ratio, torch.zeros_like(ratio)
    left = above - ratio[..., None] * below
    return ratio, left.std(-1) / below.mean(-1) / units**0.5


def _adjusted(seen: Tensor, draws: Tensor, *, unseen: tuple[float, ...], least: float) -> tuple[float, Ends]:
    value = float(seen.mean())
    low, high = _quantiles(seen[draws].mean(-1), _TAIL)
    both = torch.cat([seen, seen.new_tensor(unseen)])
    middle = float(both.mean())
    half = _Z * float((both.var(correction=0) / len(both)).sqrt())
    return value, (max(least, min(low, middle - half, value)), min(1.0, max(high, middle + half, value)))


def _quantiles(values: Tensor, tail: float) -> Ends:
    low, high = values.quantile(torch.tensor((tail, 1 - tail), dtype=values.dtype)).tolist()
    return low, high
