"""What operations do to numbers: each takes coordinates of an activation and returns the new ones.

Coordinates are a feature's activation, the component along a direction, or a whole vector: the same
arithmetic serves all three. It is carried out in float64 and rounded once, so that `set` sets exactly
and a small shift is not lost in the large norms of position 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Protocol

import torch
from torch import Tensor

from trephine.domain.errors import PositionOutOfRangeError
from trephine.domain.interventions import (
    Ablate,
    Add,
    AddNormScaled,
    Clamp,
    MeanAblate,
    Operation,
    ProjectOut,
    Resample,
    Scale,
    SetTo,
)


class Change(Protocol):
    """A change of coordinates."""

    def __call__(self, values: Tensor, whole: Tensor, positions: Sequence[int]) -> Tensor:
        """Return the new coordinates `(n, k)`.

        Args:
            values: float64 `(n, k)`, k coordinates at n positions.
            whole: `(n, width)`, the whole activation there.
            positions: The n absolute positions, ascending.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Affine:
    """`clip(factor * value + shift, low, high)`, each float64 `(k,)` or `()`."""

    factor: Tensor
    shift: Tensor
    low: Tensor
    high: Tensor

    def __call__(self, values: Tensor, whole: Tensor, positions: Sequence[int]) -> Tensor:
        """Return the new coordinates."""
        moved = values * self.factor.to(values.device) + self.shift.to(values.device)
        return torch.clamp(moved, self.low.to(values.device), self.high.to(values.device))


@dataclass(frozen=True, slots=True, kw_only=True)
class NormScaledShift:
    """Add a fraction of the whole activation's norm."""

    fraction: float

    def __call__(self, values: Tensor, whole: Tensor, positions: Sequence[int]) -> Tensor:
        """Return the new coordinates."""
        return values + self.fraction * whole.to(values.dtype).norm(dim=-1, keepdim=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class FromDonor:
    """Take the coordinates of another prompt at the same positions."""

    donor: Tensor
    """float64 `(n_donor, k)`."""

    def __call__(self, values: Tensor, whole: Tensor, positions: Sequence[int]) -> Tensor:
        """Return the donor's coordinates.

        Raises:
            PositionOutOfRangeError: If the donor is too short.
        """
        if positions and positions[-1] >= self.donor.shape[0]:
            raise PositionOutOfRangeError(
                f"the donor has {self.donor.shape[0]} tokens, position {positions[-1]} is to be replaced; "
                "use a longer donor or restrict selector.positions",
                field="operation.resample_donor",
                position=positions[-1],
                n_positions=self.donor.shape[0],
            )
        return self.donor[list(positions)]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartOf:
    """Go a share of the way that another change goes, or beyond: `old + strength (new - old)`."""

    change: Change
    strength: float

    def __call__(self, values: Tensor, whole: Tensor, positions: Sequence[int]) -> Tensor:
        """Return the new coordinates."""
        return values + self.strength * (self.change(values, whole, positions) - values)


def at_strength(change: Change, strength: float) -> Change:
    """Scale how far a change goes. One that only scales and shifts stays one of that kind."""
    if strength == 1:
        return change
    if isinstance(change, Affine) and _is_unbounded(change):
        factor = 1 + strength * (change.factor - 1)
        return replace(change, factor=factor, shift=strength * change.shift)
    return PartOf(change=change, strength=strength)


def _is_unbounded(change: Affine) -> bool:
    return bool((change.low == -inf).all() and (change.high == inf).all())


def affine(
    factor: float = 1.0, shift: float | Tensor = 0.0, low: float | None = None, high: float | None = None
) -> Affine:
    """Build an affine change out of plain numbers."""
    return Affine(
        factor=_wide(factor),
        shift=_wide(shift),
        low=_wide(-inf if low is None else low),
        high=_wide(inf if high is None else high),
    )


def side_by_side(changes: Sequence[Affine]) -> Affine:
    """Join changes of one coordinate each into one change of all of them."""
    factor, shift, low, high = (
        torch.stack([getattr(change, name).reshape(()).cpu() for change in changes])
        for name in ("factor", "shift", "low", "high")
    )
    return Affine(factor=factor, shift=shift, low=low, high=high)


def change_of(operation: Operation, *, norm: float, donor: Tensor | None) -> Change:
    """Translate an operation.

    Args:
        operation: Any operation; `project_out` and `ablate` agree once coordinates are chosen.
        norm: Length of the direction, which `add` uses as given; 1 for features.
        donor: float64 `(n_donor, k)`, coordinates of the text of `mean_ablate` or `resample`.
    """
    match operation:
        case Ablate() | ProjectOut():
            return affine(factor=0.0)
        case Scale(factor=factor):
            return affine(factor=factor)
        case SetTo(value=value):
            return affine(factor=0.0, shift=value)
        case Clamp(low=low, high=high):
            return affine(low=low, high=high)
        case Add(amount=amount):
            return affine(shift=amount * norm)
        case AddNormScaled(fraction=fraction):
            return NormScaledShift(fraction=fraction)
        case MeanAblate():
            return affine(factor=0.0, shift=_required(donor)[1:].mean(0))
        case Resample():
            return FromDonor(donor=_required(donor))


def _required(donor: Tensor | None) -> Tensor:
    if donor is None:
        raise RuntimeError("planned without the activations of the operation's text")
    return donor


def _wide(number: float | Tensor) -> Tensor:
    return torch.as_tensor(number, dtype=torch.float64)
