"""The same operation on something else, as large there as here; and operations that do nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from trephine.domain.interventions import (
    Add,
    Clamp,
    Condition,
    DirectionTarget,
    FeatureTarget,
    Intervention,
    Operation,
    Scale,
    SetTo,
    SiteTarget,
)
from trephine.domain.sites import FeatureRef
from trephine.engine.edit_evaluation.matching import Target
from trephine.engine.edit_evaluation.uses import Uses
from trephine.engine.edits.controls import place_of

Interventions = tuple[Intervention, ...]


def no_op(interventions: Sequence[Intervention]) -> Interventions:
    """Keep targets, selectors, conditions and error terms, and multiply by 1."""
    return tuple(replace(one, operation=Scale(factor=1.0)) for one in interventions)


def stand_in(
    interventions: Sequence[Intervention], stand_ins: Mapping[Target, Target], uses: Uses
) -> Interventions:
    """Do the same to the stand-ins; what has none is left out.

    Values that are set or added are scaled so that the stand-in writes as much as the feature would, bounds
    of a clamp by the features' typical activations. A condition on the feature itself becomes one on its
    stand-in.
    """
    found: list[Intervention] = []
    for one in interventions:
        target = one.target
        if isinstance(target, SiteTarget):
            continue
        other = stand_ins.get(target)
        if isinstance(target, FeatureTarget) and isinstance(other, FeatureTarget):
            found.append(_on(one, target.feature, other.feature, uses))
        elif isinstance(other, DirectionTarget):
            found.append(replace(one, target=other))
    return tuple(found)


def _on(one: Intervention, own: FeatureRef, other: FeatureRef, uses: Uses) -> Intervention:
    here, there = uses[place_of(own)], uses[place_of(other)]
    written = float(here.decoder[own.index] / there.decoder[other.index])
    active = float(there.activation[other.index] / here.activation[own.index])
    return replace(
        one,
        target=FeatureTarget(feature=other),
        operation=_operation(one.operation, written, active),
        condition=_condition(one.condition, own, other, active),
    )


def _operation(operation: Operation, written: float, active: float) -> Operation:
    match operation:
        case SetTo(value=value):
            return SetTo(value=value * written)
        case Add(amount=amount):
            return Add(amount=amount * written)
        case Clamp(low=low, high=high):
            return Clamp(
                low=None if low is None else low * active, high=None if high is None else high * active
            )
        case _:
            return operation


def _condition(
    condition: Condition | None, own: FeatureRef, other: FeatureRef, active: float
) -> Condition | None:
    if condition is None or condition.feature != own:
        return condition
    return Condition(feature=other, at_least=condition.at_least * active)
