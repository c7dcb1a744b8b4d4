"""Counting the controls that do as much as an edit, and those that do anything."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

_NOTHING = {"logits": 1e-5, "log_odds_change": 1e-5, "kl": 1e-9}
"""Logits, nats; less is rounding: rows of another batch are not the same to the bit."""


def acting(statistic: str, values: Sequence[float]) -> tuple[float, ...]:
    """Keep the control sets that change anything: beside the others any edit that acts looks special."""
    nothing = _NOTHING.get(statistic, -1.0)
    return tuple(value for value in values if not abs(value) <= nothing)


def reached(statistic: str, effect: float, values: Sequence[float]) -> int:
    """Count the control sets that do as much as the edit: in size, or, of damage, to the worse side.

    What is no number, the edit's or a control's, counts against the edit: it is not seen to do more.
    """
    if isnan(effect):
        return len(values)
    numbers = [value for value in values if not isnan(value)]
    return len(values) - len(numbers) + _as_much(statistic, effect, numbers)


def _as_much(statistic: str, effect: float, values: Sequence[float]) -> int:
    match statistic:
        case "log_odds_change" | "logits":
            return sum(abs(value) >= abs(effect) for value in values)
        case "top1_agreement" | "accuracy_change":
            return sum(value <= effect for value in values)
        case _:
            return sum(value >= effect for value in values)
