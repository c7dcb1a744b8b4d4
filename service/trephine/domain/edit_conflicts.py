"""Whether edits can act together: whatever depends on their order, or on which of them wins, is a conflict.

Two interventions of different edits conflict where their selectors meet and

- they change one target in different ways, or in one way that would be done twice;
- they change one site by operations that do not commute;
- one reads, as its condition, a feature that the other one changes;
- they want error terms, or attention patterns, that one row cannot have at once.

Operations on different neurons or features commute, so do shifts, and changes along orthogonal directions.
Equal operations that change nothing the second time are no conflict: they are carried out once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import sqrt

from trephine.domain.edits import Edit
from trephine.domain.interventions import (
    Ablate,
    Add,
    Clamp,
    DirectionTarget,
    ErrorTerm,
    FeatureTarget,
    Intervention,
    MeanAblate,
    ProjectOut,
    Resample,
    SetTo,
    SiteTarget,
    Target,
)
from trephine.domain.selector_overlap import overlap
from trephine.domain.sites import NEURONS, FeatureRef, Site, SiteKind

_ORTHOGONAL = 1e-6
"""Cosine below which two directions are called orthogonal: float32 rounding of long vectors."""

OutputSites = Mapping[tuple[str, int], tuple[Site, ...]]
"""Where the features of a set's layer write."""


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


def find_conflicts(edits: Sequence[EditInUse], sites: OutputSites) -> tuple[EditConflict, ...]:
    """Compare every two edits.

    Args:
        edits: In the order in which they would act.
        sites: Of every layer of a set that they name.
    """
    return tuple(
        conflict
        for place, first in enumerate(edits)
        for second in edits[place + 1 :]
        for conflict in _between(first, second, sites)
    )


def joined(edits: Sequence[EditInUse]) -> tuple[Intervention, ...]:
    """Return all interventions in order; what two edits have in common and changes nothing twice, once."""
    found: list[Intervention] = []
    for one in edits:
        before = tuple(found)
        found += [i for i in one.interventions if not (_is_idempotent(i) and i in before)]
    return tuple(found)


def _between(first: EditInUse, second: EditInUse, sites: OutputSites) -> list[EditConflict]:
    whole = _whole(first, second)
    if whole:
        return whole
    found: list[EditConflict] = []
    for place, one in enumerate(first.interventions):
        for other_place, other in enumerate(second.interventions):
            met = _clash(one, other, sites)
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
    one: Intervention, other: Intervention, sites: OutputSites
) -> tuple[ConflictKind, str, str] | None:
    if one.mode.patterns is not other.mode.patterns:
        return (
            ConflictKind.PATTERNS,
            "every position",
            "attention patterns cannot be frozen for one and live for the other",
        )
    where = overlap(one.selector, other.selector)
    if where is None:
        return None
    found = _same_target(one, other) or _condition(one, other) or _same_site(one, other, sites)
    return None if found is None else (found[0], where, found[1])


def _same_target(one: Intervention, other: Intervention) -> tuple[ConflictKind, str] | None:
    if not _is_same(one.target, other.target):
        return None
    if _does(one) != _does(other):
        return ConflictKind.VALUES, f"one does {_operation(one)}, the other one {_operation(other)}"
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


def _same_site(one: Intervention, other: Intervention, sites: OutputSites) -> tuple[ConflictKind, str] | None:
    """Compare changes of different targets that meet at a site."""
    if _is_same(one.target, other.target):
        return None
    if _shares_layer(one, other) and one.error_term is not other.error_term:
        return ConflictKind.ERROR_TERM, "features of one layer share one error term"
    met = _written(one, sites) & _written(other, sites)
    if not met or _commute(one, other):
        return None
    site = min(met)
    return ConflictKind.ORDER, f"both change {site.kind.value} {site.layer}, and not in any order alike"


def _commute(one: Intervention, other: Intervention) -> bool:
    if _replaces(one) or _replaces(other):
        return False
    if _is_own_coordinate(one) and _is_own_coordinate(other):
        return True
    if isinstance(one.target, DirectionTarget) and isinstance(other.target, DirectionTarget):
        return (_is_shift(one) and _is_shift(other)) or _cosine(one.target, other.target) < _ORTHOGONAL
    return _is_shift(one) and _is_shift(other)


def _is_own_coordinate(one: Intervention) -> bool:
    """True for neurons and features: what happens to one depends on no other one."""
    return isinstance(one.target, FeatureTarget) and not isinstance(one.operation, ProjectOut)


def _is_shift(one: Intervention) -> bool:
    """True if it adds to its site something that does not depend on what is there."""
    if isinstance(one.target, SiteTarget) or _replaces(one):
        return False
    return _is_feature_of_set(one) or isinstance(one.operation, Add)


def _replaces(one: Intervention) -> bool:
    """True if it puts a reconstruction in the place of what is there."""
    return _is_feature_of_set(one) and one.error_term is not ErrorTerm.LIVE


def _is_feature_of_set(one: Intervention) -> bool:
    target = one.target
    if not isinstance(target, FeatureTarget) or isinstance(one.operation, ProjectOut):
        return False
    return target.feature.replacement != NEURONS


def _shares_layer(one: Intervention, other: Intervention) -> bool:
    if not (_is_feature_of_set(one) and _is_feature_of_set(other)):
        return False
    places = [
        (i.target.feature.replacement, i.target.feature.layer)
        for i in (one, other)
        if isinstance(i.target, FeatureTarget)
    ]
    return places[0] == places[1]


def _written(one: Intervention, sites: OutputSites) -> set[Site]:
    target = one.target
    if not isinstance(target, FeatureTarget):
        return {_canonical(target.site)}
    feature = target.feature
    if feature.replacement == NEURONS:
        kind = SiteKind.MLP_OUT if isinstance(one.operation, ProjectOut) else SiteKind.NEURONS
        return {Site(kind=kind, layer=feature.layer)}
    return set(map(_canonical, sites.get((feature.replacement, feature.layer), ())))


def _canonical(site: Site) -> Site:
    """Give the residual stream between two blocks one name."""
    if site.kind is SiteKind.RESID_PRE and site.layer > 0:
        return Site(kind=SiteKind.RESID_POST, layer=site.layer - 1)
    return Site(kind=SiteKind.EMBED, layer=0) if site.kind is SiteKind.RESID_PRE else site


def _is_same(one: Target, other: Target) -> bool:
    if isinstance(one, DirectionTarget) and isinstance(other, DirectionTarget):
        parallel = 1 - _cosine(one, other) < _ORTHOGONAL
        return _canonical(one.site) == _canonical(other.site) and parallel
    return one == other


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


def _cosine(one: DirectionTarget, other: DirectionTarget) -> float:
    """Absolute cosine; 0 where widths differ, which an engine refuses anyway."""
    if len(one.vector) != len(other.vector):
        return 0.0
    dot = sum(a * b for a, b in zip(one.vector, other.vector, strict=True))
    norms = sum(a * a for a in one.vector) * sum(b * b for b in other.vector)
    return abs(dot) / sqrt(norms) if norms > 0 else 0.0


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
