"""Intervals of 95 % for shares, for the least of several, and for differences; none closes at 0 or 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, sqrt
from statistics import NormalDist

_Z = 1.959963984540054
"""Of two-sided intervals of 95 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A share, or a difference of two, and what it may be."""

    value: float
    low: float
    high: float


def wilson(hits: int, texts: int, z: float = _Z) -> tuple[float, float]:
    """Return Wilson's (1927) interval of a share; it does not close where every text is right."""
    share, spread = hits / texts, z * z / texts
    middle = (share + spread / 2) / (1 + spread)
    half = z * sqrt(share * (1 - share) / texts + spread / (4 * texts)) / (1 + spread)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def share(
    hits: int, texts: int, *, best_of: int = 1, against_best_of: int = 1, least_of: int = 1
) -> Interval:
    """Return a share with Wilson's interval; of one text or more.

    Args:
        hits: Texts that are right.
        texts: All of them.
        best_of: It is the best of so many on these texts, and as good as it is by luck in part: the lower
            bound is one that holds for all of them at once (Bonferroni). Luck makes no share look worse.
        against_best_of: The best of so many on these texts is held against it, and may be so far ahead by
            the luck of either: the upper bound is as wide as the other's lower one.
        least_of: It may be the least of so many, and is that by bad luck in part: the upper bound is one that
            holds for all of them at once. Bad luck makes no share look better.
    """
    return Interval(
        value=hits / texts,
        low=wilson(hits, texts, _at_once(best_of))[0],
        high=wilson(hits, texts, _at_once(against_best_of * least_of))[1],
    )


def _at_once(count: int) -> float:
    """Return the normal quantile of a bound that holds for so many shares at once."""
    return _Z if count == 1 else NormalDist().inv_cdf(1 - 0.025 / count)


def least(shares: Sequence[Interval]) -> Interval:
    """Return the least of shares: it may be as low as any of them, and is no higher than each.

    So one that rests on few texts is not forgotten where these few were right. Upper bounds are to hold for
    all of them at once (`least_of`): of four that are alike the worst seems worse than they are, and one that
    is no worse afterwards would seem to have gained.
    """
    return Interval(
        value=min(one.value for one in shares),
        low=min(one.low for one in shares),
        high=min(one.high for one in shares),
    )


def rivals(counts: Sequence[tuple[int, int]]) -> int:
    """Return how many of several shares may be the least, given the hits and texts of each.

    A share whose interval lies above another one's is not it, and costs no certainty.
    """
    each = [share(hits, texts) for hits, texts in counts]
    highest = min(one.high for one in each)
    return sum(one.low <= highest for one in each)


def mean(shares: Sequence[Interval]) -> Interval:
    """Return the mean of shares of different texts, each weighing the same, with its interval.

    Bounds are recovered from those of the shares (Zou and Donner 2008).
    """
    count = len(shares)
    value = sum(one.value for one in shares) / count
    return Interval(
        value=value,
        low=value - hypot(*(one.value - one.low for one in shares)) / count,
        high=value + hypot(*(one.high - one.value for one in shares)) / count,
    )


def difference(after: Interval, before: Interval, correlation: float = 0) -> Interval:
    """Return `after` less `before`, with Newcombe's (1998) hybrid score interval.

    Args:
        after: The share that is subtracted from.
        before: The one that is subtracted.
        correlation: Of the two on the same texts, `against`; 0: of unpaired shares.
    """
    gain = after.value - before.value
    down, up = after.value - after.low, after.high - after.value
    over, under = before.high - before.value, before.value - before.low
    return Interval(
        value=gain,
        low=gain - _spread(down, over, correlation),
        high=gain + _spread(up, under, correlation),
    )


def against(texts: int, before: int, after: int, both: int) -> float:
    """Return how far two decisions on the same texts go against each other: their correlation, 0 at most.

    Where what was right is wrong now, and the other way round, their difference varies more than that of
    shares of different texts, and a paired interval is the wider one. Where they agree it is the narrower
    one, which is not taken.

    Args:
        texts: Of the group.
        before: Right before.
        after: Right after.
        both: Right both times.
    """
    margins = before * (texts - before) * after * (texts - after)
    neither = texts - before - after + both
    apart = both * neither - (before - both) * (after - both)
    return min(apart / sqrt(margins), 0.0) if margins else 0.0


def _spread(first: float, second: float, correlation: float) -> float:
    return sqrt(max(first * first + second * second - 2 * correlation * first * second, 0.0))
