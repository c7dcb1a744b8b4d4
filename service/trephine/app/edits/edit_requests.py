"""What new edits and new versions are asked to be."""

from __future__ import annotations

from dataclasses import dataclass

from trephine.domain.edits import EditPart, EditSet
from trephine.domain.interventions import Intervention


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEdit:
    """What an edit is to be."""

    edit_id: str
    model: str
    interventions: tuple[Intervention, ...]
    reason: str
    author: str
    evidence: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed(NewEdit):
    """The same out of other edits, for the weights and sets that those were made for."""

    parts: tuple[EditPart, ...]
    weight_hash: str
    sets: tuple[EditSet, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EditUpdate:
    """What the next version of an edit is to be; None keeps what there is."""

    edit: str
    author: str
    interventions: tuple[Intervention, ...] | None = None
    reason: str | None = None
    evidence: tuple[str, ...] | None = None
    etag: str = ""
    """The version that the caller has seen; another one is refused. Empty: any."""
    expected_version: int | None = None
    """The same as a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reversion:
    """Which version of an edit is to come back."""

    edit: str
    version: int
    author: str
    reason: str | None = None
    etag: str = ""
    expected_version: int | None = None
