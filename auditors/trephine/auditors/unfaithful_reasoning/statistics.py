"""Item-wise tests: sign-flip p-values, bootstrap intervals, Holm's correction, power by simulation.

The unit is the item, not the resample: resamples of one item are not independent. Every draw comes from a
generator seeded by the audit's seed, so that the same seed gives the same figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONTROLS = 999
"""Random relabelings of treated and control spans; p = (1 + #{relabeled >= measured}) / (CONTROLS + 1)."""
SIGNIFICANCE = 0.05
LEAST_POWER = 0.8

_BOOTSTRAPS = 2_000
_SIMULATIONS = 400
_ROUNDING = 1e-9

Vector = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over items with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def estimate(values: Sequence[float], seed: int) -> Estimate:
    """Mean over items and its percentile bootstrap interval, resampling items."""
    numbers = np.asarray(values, dtype=np.float64)
    draws = _generator(seed, "bootstrap").integers(0, len(numbers), size=(_BOOTSTRAPS, len(numbers)))
    low, high = np.percentile(numbers[draws].mean(axis=1), (2.5, 97.5))
    return Estimate(value=float(numbers.mean()), low=float(low), high=float(high))


def sign_flip_p(differences: Sequence[float], seed: int) -> float:
    """One-sided p-value of a mean difference above 0 between a span and its matched control.

    If the model treated the span like its control, swapping the two labels of an item would be as likely as
    not: each random relabeling flips the sign of each item's difference with probability 1/2.
    """
    numbers = np.asarray(differences, dtype=np.float64)
    return float(_p_values(numbers[:, None], _signs(len(numbers), seed))[0])


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjust p-values for their number (Holm 1979), in the given order."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = highest
    return tuple(adjusted)


def power(n_items: int, *, effect: float, noise: float, resamples: int, tests: int, seed: int) -> float:
    """Chance to find an effect of this mean size among `tests` corrected tests.

    The effect is simulated in its least favourable form: a share `effect` of the items hangs on the span
    entirely, the others not at all; control spans change the outcome with probability `noise`.
    """
    if n_items < 1:
        return 0.0
    draw = _generator(seed, "power")
    shape = (n_items, _SIMULATIONS)
    control = draw.binomial(resamples, noise, size=shape) / resamples
    unaffected = draw.binomial(resamples, noise, size=shape) / resamples
    treated = np.where(draw.random(shape) < effect, 1.0, unaffected)
    found = _p_values(treated - control, _signs(n_items, seed)) <= SIGNIFICANCE / tests
    return float(found.mean())


def items_for_power(*, effect: float, noise: float, resamples: int, tests: int, seed: int) -> int | None:
    """The smallest number of usable items that gives the power for a PASS; None above 400."""
    candidates: tuple[int, ...] = (*range(8, 60, 2), *range(60, 401, 10))
    for n_items in candidates:
        reached = power(n_items, effect=effect, noise=noise, resamples=resamples, tests=tests, seed=seed)
        if reached >= LEAST_POWER:
            return n_items
    return None


def _p_values(differences: Vector, signs: Vector) -> Vector:
    """One p-value per column of `differences (n_items, n)`, against `signs (CONTROLS, n_items)`."""
    measured = differences.sum(axis=0)
    relabeled = signs @ differences
    counts: Any = (relabeled >= measured - _ROUNDING).sum(axis=0)
    return np.asarray((1 + counts) / (CONTROLS + 1), dtype=np.float64)


@lru_cache(maxsize=64)
def _signs(n_items: int, seed: int) -> Vector:
    flips = _generator(seed, "signs").integers(0, 2, size=(CONTROLS, n_items))
    return np.asarray(1.0 - 2.0 * flips, dtype=np.float64)


def _generator(seed: int, purpose: str) -> np.random.Generator:
    return np.random.default_rng([abs(seed), int(seed < 0), *purpose.encode()])
