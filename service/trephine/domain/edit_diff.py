"""What differs between two edits, or two versions of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from trephine.domain.edits import Edit
from trephine.domain.interventions import Intervention

_PARTS = ("operation", "selector", "mode", "condition", "error_term", "label")
_FIELDS = ("reason", "author", "evidence", "model", "weight_hash", "sets", "parts")


class ChangeKind(StrEnum):
    """What became of an intervention."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class InterventionChange:
    """One intervention that is not the same in both."""

    kind: ChangeKind
    before: Intervention | None
    """None: added."""
    after: Intervention | None
    """None: removed."""
    fields: tuple[str, ...]
    """Of a change: which of its parts differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EditDiff:
    """The second edit as seen from the first."""

    first: Edit
    second: Edit
    changes: tuple[InterventionChange, ...]
    unchanged: int
    """Interventions that are the same in both."""
    reordered: bool
    """Those that are the same stand in another order."""
    fields: tuple[str, ...]
    """What differs beside interventions: `reason`, `author`, `evidence`, `weight_hash`, ..."""

    @property
    def same_content(self) -> bool:
        """True if both do the same to the same weights."""
        return self.first.content_hash == self.second.content_hash


def diff(first: Edit, second: Edit) -> EditDiff:
    """Compare two edits; interventions are matched by what they change, in order."""
    before, after = list(first.interventions), list(second.interventions)
    kept = _common(before, after)
    rest_before, rest_after = _without(before, kept), _without(after, kept)
    changes: list[InterventionChange] = []
    for old in rest_before:
        new = next((one for one in rest_after if one.target == old.target), None)
        if new is not None:
            rest_after.remove(new)
        changes.append(_change(old, new))
    changes += [_change(None, new) for new in rest_after]
    return EditDiff(
        first=first,
        second=second,
        changes=tuple(changes),
        unchanged=len(kept),
        reordered=[one for one in before if one in kept] != [one for one in after if one in kept],
        fields=tuple(name for name in _FIELDS if getattr(first, name) != getattr(second, name)),
    )


def _change(before: Intervention | None, after: Intervention | None) -> InterventionChange:
    kind = ChangeKind.CHANGED
    if before is None or after is None:
        kind = ChangeKind.ADDED if before is None else ChangeKind.REMOVED
        return InterventionChange(kind=kind, before=before, after=after, fields=())
    fields = tuple(name for name in _PARTS if getattr(before, name) != getattr(after, name))
    return InterventionChange(kind=kind, before=before, after=after, fields=fields)


def _common(before: Sequence[Intervention], after: Sequence[Intervention]) -> list[Intervention]:
    left = list(after)
    found: list[Intervention] = []
    for one in before:
        if one in left:
            left.remove(one)
            found.append(one)
    return found


def _without(interventions: Sequence[Intervention], taken: Sequence[Intervention]) -> list[Intervention]:
    left = list(interventions)
    for one in taken:
        left.remove(one)
    return left
