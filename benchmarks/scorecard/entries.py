"""Lines of the card: a figure, what stands beside it, the bar, and the verdict that its interval allows.

A verdict is PASS where the whole interval is on the bar's side, FAIL where it is wholly on the other, and
INCONCLUSIVE everywhere else, as where something is no number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, sqrt
from statistics import fmean

from trephine.domain.findings import Figure, Verdict
from trephine.domain.standings import Standing

LEVEL = 0.05
"""Of p-values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line."""

    figure: str
    """What is measured."""
    of: str
    """On what: the set, neurons, an edit."""
    value: Figure
    beside: tuple[Figure, ...] = ()
    """Baselines and controls, by name."""
    bar: str
    """What the value is held to."""
    verdict: Verdict
    how: str
    """Ablation, positions, counts: what makes the figure mean something."""


def at_least(value: Figure, bound: float) -> Verdict:
    """Hold a figure to a lower bound."""
    low, high = interval_of(value)
    return _sided(low >= bound, high < bound)


def at_most(value: Figure, bound: float) -> Verdict:
    """Hold a figure to an upper bound."""
    low, high = interval_of(value)
    return _sided(high <= bound, low > bound)


def above_zero(differences: Sequence[Figure]) -> Verdict:
    """Hold paired differences to 0: all of them have to lie above it. Without any nothing is told."""
    return together([at_least_above_zero(each) for each in differences])


def at_least_above_zero(difference: Figure) -> Verdict:
    """Hold one paired difference to 0, which itself is no difference."""
    low, high = interval_of(difference)
    return _sided(low > 0, high < 0)


def by_chance(p_values: Sequence[float]) -> Verdict:
    """PASS where every p-value is at most `LEVEL`; a larger one proves nothing."""
    told = bool(p_values) and all(p <= LEVEL for p in p_values)  # NaN is not
    return Verdict.PASS if told else Verdict.INCONCLUSIVE


def of_standing(standing: Standing) -> Verdict:
    """Turn what was told beside a baseline into a verdict."""
    return _STANDINGS.get(standing, Verdict.INCONCLUSIVE)


_STANDINGS = {Standing.BEATS: Verdict.PASS, Standing.DOES_NOT_BEAT: Verdict.FAIL}


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """Sum verdicts up: one FAIL fails, one doubt leaves all in doubt, and nothing at all is a doubt."""
    if Verdict.FAIL in verdicts:
        return Verdict.FAIL
    if not verdicts or any(each is not Verdict.PASS for each in verdicts):
        return Verdict.INCONCLUSIVE
    return Verdict.PASS


def interval_of(figure: Figure) -> tuple[float, float]:
    """Return the bounds; NaN, which is on no bar's side, where there are none or the value is no number."""
    if figure.low is None or figure.high is None or isnan(figure.value):
        return float("nan"), float("nan")
    return figure.low, figure.high


def mean_of(name: str, figures: Sequence[Figure]) -> Figure:
    """Average independent figures; the interval is recovered from theirs (MOVER: Zou and Donner 2008)."""
    if not figures:
        return Figure(name=name, value=float("nan"))
    value, bounds = fmean(each.value for each in figures), [interval_of(each) for each in figures]
    below = sqrt(sum((each.value - low) ** 2 for each, (low, _) in zip(figures, bounds, strict=True)))
    above = sqrt(sum((high - each.value) ** 2 for each, (_, high) in zip(figures, bounds, strict=True)))
    return Figure(name=name, value=value, low=value - below / len(figures), high=value + above / len(figures))


def counted(name: str, value: float) -> Figure:
    """Name a number that is exact, a count or a largest error: its interval is itself."""
    return Figure(name=name, value=value, low=value, high=value)


def _sided(good: bool, bad: bool) -> Verdict:
    if good:
        return Verdict.PASS
    return Verdict.FAIL if bad else Verdict.INCONCLUSIVE
