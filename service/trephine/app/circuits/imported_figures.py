"""What a file of ours says of a circuit: errors' share, of a global one its figures and its nodes' shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from trephine.domain.errors import InvalidRequestError
from trephine.domain.global_figures import GlobalFigures

_FIGURES = TypeAdapter(GlobalFigures)
_INFLUENCES = TypeAdapter(dict[str, float])
_SHARE = TypeAdapter(Annotated[float, Field(ge=0, le=1 + 1e-3, allow_inf_nan=False)])
"""Sums of float32 may be above 1 by their rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedFigures:
    """Of a global circuit."""

    across: GlobalFigures
    influences: Mapping[str, float] | None
    """By the id of a node; None in files of before they were written."""

    def of(self, identities: Sequence[str]) -> list[float] | None:
        """Return the shares of nodes in their order; None where the file does not tell all of them."""
        if self.influences is None or any(one not in self.influences for one in identities):
            return None
        return [self.influences[one] for one in identities]


def told_error_share(told: Mapping[str, Any]) -> float | None:
    """Return errors' share of all influence in the graph that a file was written from; None where not told.

    Args:
        told: What a file of ours says in `metadata.info`.

    Raises:
        InvalidRequestError: If it is no share.
    """
    if told.get("error_share") is None:
        return None
    try:
        return _SHARE.validate_python(told["error_share"], strict=True)
    except ValidationError as error:
        said = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise InvalidRequestError(
            f"the file's metadata.info.error_share is no share: {said}", field="artifact"
        ) from error


def imported_figures(told: Mapping[str, Any]) -> ImportedFigures | None:
    """Return what the file says; None of a circuit of a prompt, and in files that do not say.

    Args:
        told: What a file of ours says in `metadata.info`.

    Raises:
        InvalidRequestError: If what it says is no such thing.
    """
    if told.get("across") is None:
        return None
    try:
        across = _FIGURES.validate_python(_read(told["across"]))
        influences = None if told.get("influences") is None else _influences(told["influences"])
    except (ValidationError, ValueError) as error:
        said = (
            error.errors(include_url=False, include_input=False) if isinstance(error, ValidationError) else ()
        )
        where = ".".join(map(str, said[0]["loc"])) if said else "influences"
        raise InvalidRequestError(
            f"the file's metadata.info does not say what was measured of its global circuit: {where}: "
            f"{said[0]['msg'] if said else error}",
            field="artifact",
        ) from error
    return ImportedFigures(across=across, influences=influences)


def _influences(told: Any) -> dict[str, float]:
    found = _INFLUENCES.validate_python(told)
    if any(not isfinite(one) or one < 0 for one in found.values()):
        raise ValueError("shares are numbers from 0 to 1")
    return found


def _read(value: Any) -> Any:
    """Return a tree in which a figure's value of null is no number, as it was written."""
    match value:
        case dict():
            return {key: nan if key == "value" and one is None else _read(one) for key, one in value.items()}
        case list():
            return [_read(one) for one in value]
        case _:
            return value
