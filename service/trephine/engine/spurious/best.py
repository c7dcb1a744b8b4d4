"""Which number of features, and which head, of all that were tried."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.domain.spurious_removal import ChoicePoint
from trephine.engine.spurious.information import Paired

_SURE = 1.96
"""Standard errors of a difference. Where errors are of each figure alone, and larger, one is enough."""


def best_point(points: Sequence[ChoicePoint], told: Sequence[Paired | None] = ()) -> int:
    """Return the place of the best point, of ties the fewest features.

    A head that cannot follow the attribute is taken only where it gains more than its standard error over
    removal alone, and then with the fewest features that lie within it of the best (Breiman et al. 1984).
    Heads that decided on the same twins (`told`) are compared text by text: what counts is a difference
    that chance would make in one of twenty. Twins of one label alone never tell one.
    """

    def best_of(places: list[int]) -> int:
        return max(places, key=lambda place: (points[place].criterion, -points[place].count))

    free = best_of([place for place, one in enumerate(points) if not one.erased])
    erased = [place for place, one in enumerate(points) if one.erased]
    if not erased:
        return free
    best = best_of(erased)

    def as_good(place: int) -> bool:
        mine, other = (told[one] if told else None for one in (best, place))
        error = points[best].error
        if mine is not None and other is not None:
            error = _SURE * mine.mean(mine.information() - other.information())[1]
        return points[place].criterion >= points[best].criterion - error

    return free if as_good(free) else next(place for place in erased if as_good(place))
