"""What operations make of one feature, as a piecewise linear function of its pre-activation.

A threshold feature answers f(p) = p where p > theta and 0 elsewhere. Every operation that weights can carry
(ablate, scale, set, clamp, add; conditional on the feature itself or not) turns it into another piecewise
linear g(p), possibly with jumps; what has to be written is g - f: a constant, and a jump and a change of
slope at each of a few knots.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf

import torch
from torch import Tensor

from trephine.engine.interventions.changes import Affine


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """`slope * p + intercept` for p above `start`, up to where the next segment starts."""

    start: float
    slope: float
    intercept: float

    def at(self, p: float) -> float:
        """Return the value that the segment's line has at p."""
        return self.intercept if self.slope == 0.0 else self.slope * p + self.intercept


Curve = tuple[Segment, ...]
"""Ascending; the first segment starts at -inf and is constant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knot:
    """Where a curve jumps or bends."""

    place: float
    jump: float
    bend: float
    """Change of slope."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What is added to a feature's activation: a constant everywhere, and what happens at the knots."""

    constant: float
    knots: tuple[Knot, ...]

    def __call__(self, p: Tensor) -> Tensor:
        """Evaluate at pre-activations."""
        total = torch.full_like(p, self.constant)
        for knot in self.knots:
            beyond = (p > knot.place).to(p.dtype)
            total = total + beyond * (knot.jump + knot.bend * (p - knot.place))
        return total


def feature_curve(threshold: float) -> Curve:
    """Return f itself; above an infinite threshold there is nothing."""
    never = Segment(start=-inf, slope=0.0, intercept=0.0)
    return (never,) if threshold == inf else (never, Segment(start=threshold, slope=1.0, intercept=0.0))


def changed(curve: Curve, change: Affine, *, threshold: float, at_least: float | None = None) -> Curve:
    """Apply one operation to a curve.

    Args:
        curve: What earlier operations have made of the feature.
        change: `clip(factor * value + shift, low, high)`.
        threshold: The feature's own.
        at_least: Apply only where the feature's own activation f is at least this.
    """
    if at_least is None:
        return _merged(_affine(curve, change))
    if at_least == inf:
        return curve
    return _merged(
        piece
        for segment, end in _bounded(_split(curve, at_least))
        for piece in (
            _clipped(segment, end, change) if _holds(segment, threshold, at_least) else iter((segment,))
        )
    )


def difference_of(changes: Iterable[tuple[Affine, float | None]], threshold: float) -> Difference:
    """Return what operations add to a feature.

    Args:
        changes: In their order, each with the smallest activation of the feature itself at which it applies.
        threshold: The feature's; infinite: it never fires.
    """
    curve = feature_curve(threshold)
    for change, at_least in changes:
        curve = changed(curve, change, threshold=threshold, at_least=at_least)
    return difference(curve, threshold)


def difference(curve: Curve, threshold: float) -> Difference:
    """Return g - f."""
    pieces = curve if threshold == inf else _split(curve, threshold)
    own = [1.0 if piece.start >= threshold else 0.0 for piece in pieces]
    less = [replace(piece, slope=piece.slope - slope) for piece, slope in zip(pieces, own, strict=True)]
    knots = [
        Knot(place=b.start, jump=b.at(b.start) - a.at(b.start), bend=b.slope - a.slope)
        for a, b in pairwise(less)
    ]
    return Difference(
        constant=less[0].intercept,
        knots=tuple(
            replace(knot, jump=_settled(knot.jump, knot.place))
            for knot in knots
            if _settled(knot.jump, knot.place) or knot.bend
        ),
    )


def _settled(jump: float, place: float) -> float:
    """Take a jump that is rounding only for none."""
    return 0.0 if abs(jump) <= 1e-12 * max(1.0, abs(place)) else jump


def _holds(segment: Segment, threshold: float, at_least: float) -> bool:
    return segment.start >= at_least if segment.start >= threshold else at_least <= 0.0


def _split(curve: Curve, place: float) -> Curve:
    """Start a segment at a place."""
    if any(segment.start == place for segment in curve):
        return curve
    owner = next(segment for segment in reversed(curve) if segment.start < place)
    return tuple(sorted((*curve, replace(owner, start=place)), key=lambda segment: segment.start))


def _bounded(curve: Curve) -> Iterator[tuple[Segment, float]]:
    ends = [segment.start for segment in curve[1:]] + [inf]
    return zip(curve, ends, strict=True)


def _affine(curve: Curve, change: Affine) -> Iterator[Segment]:
    for segment, end in _bounded(curve):
        yield from _clipped(segment, end, change)


def _clipped(segment: Segment, end: float, change: Affine) -> Iterator[Segment]:
    """Move a segment's line and cut it where it crosses a bound."""
    factor, shift = float(change.factor), float(change.shift)
    low, high = float(change.low), float(change.high)
    slope, intercept = factor * segment.slope, factor * segment.intercept + shift
    if slope == 0.0:
        yield Segment(start=segment.start, slope=0.0, intercept=min(max(intercept, low), high))
        return
    crossings = [(bound - intercept) / slope for bound in (low, high) if abs(bound) != inf]
    inside = sorted(place for place in crossings if segment.start < place < end)
    for start, stop in zip([segment.start, *inside], [*inside, end], strict=True):
        middle = start + 1.0 if stop == inf else (start + stop) / 2
        value = slope * middle + intercept
        flat = low if value < low else high if value > high else None
        yield (
            Segment(start=start, slope=slope, intercept=intercept)
            if flat is None
            else Segment(start=start, slope=0.0, intercept=flat)
        )


def _merged(segments: Iterable[Segment]) -> Curve:
    kept: list[Segment] = []
    for segment in segments:
        if kept and (kept[-1].slope, kept[-1].intercept) == (segment.slope, segment.intercept):
            continue
        kept.append(segment)
    return tuple(kept)
