"""Whether an edit takes something away, puts something in, or does neither."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.domain.interventions import (
    Add,
    AddNormScaled,
    Clamp,
    ErrorTerm,
    Intervention,
    Scale,
    SetTo,
)


def is_steering(interventions: Sequence[Intervention]) -> bool:
    """True if an edit puts something in and does not only take away."""
    return any(puts_in(one) for one in interventions)


def is_removing(interventions: Sequence[Intervention]) -> bool:
    """True if an edit takes something away, whatever it puts in beside."""
    return any(takes_away(one) for one in interventions)


def puts_in(one: Intervention) -> bool:
    """True if an activation may be larger than it would be, or other than a part of it."""
    if one.mode.strength == 0:
        return False
    match one.operation:
        case Add(amount=size) | AddNormScaled(fraction=size):
            return size != 0
        case SetTo(value=value):
            return value != 0
        case Scale(factor=factor):
            return abs(factor) > 1
        case Clamp(low=low):
            return low is not None and low > 0
        case _:
            return False


def takes_away(one: Intervention) -> bool:
    """True if a part of an activation, or of what a set does not reconstruct, is gone."""
    if one.mode.strength == 0:
        return False
    if one.error_term is ErrorTerm.DROP:
        return True
    match one.operation:
        case Add() | AddNormScaled():
            return False
        case SetTo(value=value):
            return value == 0
        case Scale(factor=factor):
            return factor < 1
        case Clamp(low=low, high=high):
            return high is not None or (low is not None and low <= 0)
        case _:
            return True
