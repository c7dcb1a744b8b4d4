"""Whether edits can act together: whatever depends on their order, or on which of them wins, is a conflict.

Two interventions of different edits conflict where their selectors meet and

- they change one target in different ways, or in one way that would be done twice;
- they change one site in a way that depends on which acts first (edit_order);
- one reads, as its condition, a feature that the other one changes;
- they want error terms, or attention patterns, that one row cannot have at once.

Equal operations that change nothing the second time are no conflict: they are carried out once. Nor is an
edit at strength 0, which changes nothing at all; how a row treats error terms and patterns it still decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import sqrt

from trephine.domain.edit_order import Places, is_same_target, opposed, shares_layer, where_order_matters
from trephine.domain.edits import Edit
from trephine.domain.interventions import (
    Ablate,
    Add,
    AddNormScaled,
    Clamp,
    DirectionTarget,
    FeatureTarget,
    Intervention,
    MeanAblate,
    Operation,
    ProjectOut,
    Resample,
    SetTo,
    Target,
)
from trephine.domain.selector_overlap import overlap
from trephine.domain.sites import FeatureRef


class ConflictKind(StrEnum):
    """Why two edits cannot act together."""

    WEIGHTS = "weights"
    """They were made for different weights."""
    SET = "set"
    """They name different sets by one name."""
    VALUES = "values"
    """They change one target in different ways."""
    TWICE = "twice"
    """They change one target in the same way, which adds up."""
    ORDER = "order"
    """What comes of them depends on which acts first."""
    ERROR_TERM = "error_term"
    """They treat the error of one layer differently."""
    PATTERNS = "patterns"
    """One freezes attention patterns, the other one does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditInUse:
    """An edit as it is to act: its interventions at its strength."""

    edit: Edit
    strength: float
    interventions: tuple[Intervention, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EditConflict:
    """Two edits that cannot act together."""

    kind: ConflictKind
    first: str
    """Name and version."""
    second: str
    target: str
    """`measured:12:345`, `direction at resid_post 12`; empty if it is about the whole edits."""
    positions: str
    """Where both would act, in words."""
    why: str
    first_intervention: int = -1
    """Index; -1 if it is about the whole edits."""
    second_intervention: int = -1

    def __str__(self) -> str:
        """For people."""
        where = f" at {self.positions}" if self.positions else ""
        what = f" on {self.target}{where}" if self.target else ""
        return f"{self.first} and {self.second} conflict{what}: {self.why}"


def find_conflicts(edits: Sequence[EditInUse], places: Places) -> tuple[EditConflict, ...]:
    """Compare every two edits.

    Args:
        edits: In the order in which they would act.
        places: Of every layer of a set that they name.
    """
    return tuple(
        conflict
        for place, first in enumerate(edits)
        for second in edits[place + 1 :]
        for conflict in _between(first, second, places)
    )


def joined(edits: Sequence[EditInUse]) -> tuple[Intervention, ...]:
    """Return all interventions in order; what two edits have in common and changes nothing twice, once."""
    found: list[Intervention] = []
    for one in edits:
        before = tuple(found)
        found += [i for i in one.interventions if not (_is_idempotent(i) and i in before)]
    return tuple(found)


def _between(first: EditInUse, second: EditInUse, places: Places) -> list[EditConflict]:
    whole = _whole(first, second)
    if whole:
        return whole
    found: list[EditConflict] = []
    for place, one in enumerate(first.interventions):
        for other_place, other in enumerate(second.interventions):
            met = _clash(one, other, places, idle=0 in (first.strength, second.strength))
            if met is not None:
                kind, positions, why = met
                found.append(
                    EditConflict(
                        kind=kind,
                        first=first.edit.reference,
                        second=second.edit.reference,
                        target=describe(one.target),
                        positions=positions,
                        why=why,
                        first_intervention=place,
                        second_intervention=other_place,
                    )
                )
    return found


def _whole(first: EditInUse, second: EditInUse) -> list[EditConflict]:
    """What concerns the edits as a whole."""

    def conflict(kind: ConflictKind, why: str) -> EditConflict:
        return EditConflict(
            kind=kind,
            first=first.edit.reference,
            second=second.edit.reference,
            target="",
            positions="",
            why=why,
        )

    ours, theirs = first.edit, second.edit
    if ours.weight_hash != theirs.weight_hash:
        why = (
            f"they were made for different weights, {ours.weight_hash[:12]} of {ours.model} and "
            f"{theirs.weight_hash[:12]} of {theirs.model}"
        )
        return [conflict(ConflictKind.WEIGHTS, why)]
    known = {one.name: one.content_hash for one in ours.sets}
    return [
        conflict(
            ConflictKind.SET,
            f"the set {one.name} has content {known[one.name][:12]} in one and {one.content_hash[:12]} in "
            "the other",
        )
        for one in theirs.sets
        if known.get(one.name, one.content_hash) != one.content_hash
    ]


def _clash(
    one: Intervention, other: Intervention, places: Places, *, idle: bool
) -> tuple[ConflictKind, str, str] | None:
    """Compare two interventions; `idle`: one of them changes nothing, at strength 0."""
    if one.mode.patterns is not other.mode.patterns:
        return (
            ConflictKind.PATTERNS,
            "every position",
            "attention patterns cannot be frozen for one and live for the other",
        )
    where = overlap(one.selector, other.selector)
    if where is None:
        return None
    if idle:
        found = _error_terms(one, other)
    else:
        found = _same_target(one, other) or _condition(one, other) or _same_site(one, other, places)
    return None if found is None else (found[0], where, found[1])


def _same_target(one: Intervention, other: Intervention) -> tuple[ConflictKind, str] | None:
    if not is_same_target(one.target, other.target):
        return None
    turned = opposed(one.target, other.target)
    if _does(one) != _does(replace(other, operation=_turned(other.operation)) if turned else other):
        way = " along the opposite direction" if turned else ""
        return ConflictKind.VALUES, f"one does {_operation(one)}, the other one {_operation(other)}{way}"
    if not _is_idempotent(one):
        return ConflictKind.TWICE, f"{_operation(one)} would be done twice"
    return None


def _condition(one: Intervention, other: Intervention) -> tuple[ConflictKind, str] | None:
    for reader, writer in ((one, other), (other, one)):
        target = writer.target
        if reader.condition is None or not isinstance(target, FeatureTarget):
            continue
        if reader.condition.feature == target.feature:
            return (
                ConflictKind.ORDER,
                f"one acts only where {_name(target.feature)} is active, the other one changes it",
            )
    return None


def _same_site(one: Intervention, other: Intervention, places: Places) -> tuple[ConflictKind, str] | None:
    """Compare changes of different targets that meet at a site."""
    if is_same_target(one.target, other.target):
        return None
    terms = _error_terms(one, other)
    if terms is not None:
        return terms
    site = where_order_matters(one, other, places)
    if site is None:
        return None
    return ConflictKind.ORDER, f"what comes of {site.kind.value} {site.layer} depends on which acts first"


def _error_terms(one: Intervention, other: Intervention) -> tuple[ConflictKind, str] | None:
    if not shares_layer(one, other) or one.error_term is other.error_term:
        return None
    return ConflictKind.ERROR_TERM, "features of one layer share one error term"


def _turned(operation: Operation) -> Operation:
    """Return what does the same along the opposite direction; what removes or scales asks for no sign."""
    match operation:
        case SetTo(value=value):
            return SetTo(value=-value)
        case Clamp(low=low, high=high):
            return Clamp(low=None if high is None else -high, high=None if low is None else -low)
        case Add(amount=amount):
            return Add(amount=-amount)
        case AddNormScaled(fraction=fraction):
            return AddNormScaled(fraction=-fraction)
        case _:
            return operation


def _does(one: Intervention) -> tuple[object, ...]:
    """What an intervention does to its target; for a direction that is added, how long it is counts."""
    target = one.target
    length = sqrt(sum(v * v for v in target.vector)) if isinstance(target, DirectionTarget) else 1.0
    scaled = round(length, 9) if isinstance(one.operation, Add) else 1.0
    return one.operation, scaled, one.mode, one.condition, one.error_term


def _is_idempotent(one: Intervention) -> bool:
    if one.mode.strength != 1:
        return False
    return isinstance(one.operation, Ablate | SetTo | Clamp | ProjectOut | MeanAblate | Resample)


def describe(target: Target) -> str:
    """Name a target for people."""
    if isinstance(target, FeatureTarget):
        return _name(target.feature)
    what = "direction at " if isinstance(target, DirectionTarget) else ""
    return f"{what}{target.site.kind.value} {target.site.layer}"


def _name(feature: FeatureRef) -> str:
    return f"{feature.replacement}:{feature.layer}:{feature.index}"


def _operation(one: Intervention) -> str:
    """`scale(factor=0.5)`; long texts are cut."""
    fields = [
        f"{name}={str(getattr(one.operation, name))[:40]}"
        for name in one.operation.__slots__
        if name != "kind"
    ]
    strength = "" if one.mode.strength == 1 else f" at strength {one.mode.strength:g}"
    return (
        f"{one.operation.kind}({', '.join(fields)}){strength}"
        if fields
        else f"{one.operation.kind}{strength}"
    )
