"""Intervals of 95 % for shares, for the least of several, and for differences; none closes at 0 or 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot, sqrt

_Z = 1.959963984540054
"""Of two-sided intervals of 95 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A share, or a difference of two, and what it may be."""

    value: float
    low: float
    high: float


def wilson(hits: int, texts: int) -> tuple[float, float]:
    """Return Wilson's (1927) interval of a share; it does not close where every text is right."""
    share, spread = hits / texts, _Z * _Z / texts
    middle = (share + spread / 2) / (1 + spread)
    half = _Z * sqrt(share * (1 - share) / texts + spread / (4 * texts)) / (1 + spread)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def share(hits: int, texts: int) -> Interval:
    """Return a share with Wilson's interval; of one text or more."""
    low, high = wilson(hits, texts)
    return Interval(value=hits / texts, low=low, high=high)


def least(shares: Sequence[Interval]) -> Interval:
    """Return the least of shares: it may be as low as any of them, and is no higher than each.

    So one that rests on few texts is not forgotten where these few were right.
    """
    return Interval(
        value=min(one.value for one in shares),
        low=min(one.low for one in shares),
        high=min(one.high for one in shares),
    )


def difference(after: Interval, before: Interval) -> Interval:
    """Return `after` less `before`, with Newcombe's (1998) hybrid score interval of unpaired shares."""
    gain = after.value - before.value
    return Interval(
        value=gain,
        low=gain - hypot(after.value - after.low, before.high - before.value),
        high=gain + hypot(after.high - after.value, before.value - before.low),
    )
