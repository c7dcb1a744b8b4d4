"""Edits that requests are served under: by name with a request, or by default for a model."""

from __future__ import annotations

from dataclasses import dataclass

from trephine.domain.errors import InvalidRequestError
from trephine.domain.interventions import require_strength


@dataclass(frozen=True, slots=True, kw_only=True)
class EditUse:
    """An edit and how far it goes."""

    edit: str
    """Name, with a version or without: then the latest, at every request."""
    strength: float = 1.0
    """The activation moves so many times as far as the edit moves it; 0 does nothing."""

    def __post_init__(self) -> None:
        require_strength(self.strength, "strength")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSetting:
    """The edits under which a model serves requests that name none."""

    model: str
    uses: tuple[EditUse, ...]
    update_time: str
    """RFC 3339, UTC; empty if none was ever set."""


def require_different(uses: tuple[EditUse, ...], *, field: str) -> None:
    """Refuse an edit that is named twice: its strengths would add up.

    Raises:
        InvalidRequestError: Naming it.
    """
    seen: set[str] = set()
    for place, use in enumerate(uses):
        name = use.edit.partition("@")[0].removeprefix("edits/")
        if name in seen:
            raise InvalidRequestError(
                f"the edit {name} is named twice; name it once, at the strength that it is to have",
                field=f"{field}[{place}].edit",
            )
        seen.add(name)
