"""Edits that requests are served under, what stands in their way, and what differs between two."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trephine.client.decoding import WireValue
from trephine.client.types.interventions import Intervention


class EditConflictKind(StrEnum):
    """Why two edits cannot act together."""

    UNSPECIFIED = "unspecified"
    WEIGHTS = "weights"
    SET = "set"
    VALUES = "values"
    TWICE = "twice"
    ORDER = "order"
    ERROR_TERM = "error_term"
    PATTERNS = "patterns"


class InterventionChangeKind(StrEnum):
    """What became of an intervention."""

    UNSPECIFIED = "unspecified"
    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"


@dataclass(frozen=True, slots=True, kw_only=True)
class EditUse(WireValue):
    """An edit and how far it goes."""

    edit: str
    """Resource name, `edits/no-mary` for the latest version at every request, or `edits/no-mary@2`."""
    strength: float | None = None
    """The activation moves so many times as far as the edit moves it; None: 1, as stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveEdits(WireValue):
    """The edits under which a model serves requests that name none."""

    model: str
    edits: tuple[EditUse, ...]
    update_time: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EditConflict(WireValue):
    """Two edits that cannot act together."""

    kind: EditConflictKind
    first: str
    second: str
    target: str
    """`measured:12:345`; empty if it is about the whole edits."""
    positions: str
    why: str
    first_intervention: int | None
    second_intervention: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InterventionChange(WireValue):
    """One intervention that is not the same in both edits."""

    kind: InterventionChangeKind
    before: Intervention | None
    after: Intervention | None
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EditDiff(WireValue):
    """The second edit as seen from the first."""

    first: str
    second: str
    same_content: bool
    changes: tuple[InterventionChange, ...]
    unchanged: int
    reordered: bool
    fields: tuple[str, ...]
    """What differs beside interventions: `reason`, `author`, `evidence`, `weight_hash`, ..."""
