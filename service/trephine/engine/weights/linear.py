"""Affine maps of what a linear module reads or writes, as low-rank changes of its weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from trephine.domain.sites import Site
from trephine.engine.interventions.changes import Affine
from trephine.engine.models.sites import place_in_pass

When = tuple[tuple[int, int], int]
"""Sorts what is done in a forward pass: when it reaches the site, then the order of the request there."""
_ROUNDING = 1e-12
"""Share of a constant below which what is left of it, once a later map takes it away, is float64 rounding."""
_GONE = 1e-9
"""Of a unit vector that a map takes away."""


def when(site: Site, number: int) -> When:
    """Return when an intervention acts, by the site that it names and its number in the edit."""
    return place_in_pass(site), number


@dataclass(frozen=True, slots=True, kw_only=True)
class MapOp:
    """One component of what is at a site, or all of it (`unit` None): `factor * value + shift`."""

    number: int
    site: Site
    """Where weights carry it, or, of what is fitted, where it acts."""
    origin: Site
    """Where it acts in a forward pass: the site that the edit names."""
    unit: Tensor | None
    """float64 `(width,)`."""
    change: Affine

    @property
    def when(self) -> When:
        """Sorts maps as a forward pass carries them out, whatever order they have in the edit."""
        return when(self.origin, self.number)

    @property
    def is_affine(self) -> bool:
        """True without bounds."""
        return float(self.change.low) == -inf and float(self.change.high) == inf

    @property
    def is_shift(self) -> bool:
        """True if it only adds a constant."""
        return self.is_affine and float(self.change.factor) == 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Affinity:
    """x -> gain * (x + L (R x)) + offset."""

    left: Tensor
    """float64 `(width, k)`."""
    right: Tensor
    """float64 `(k, width)`."""
    offset: Tensor
    """float64 `(width,)`."""
    gain: float

    @property
    def is_identity(self) -> bool:
        """True if nothing changes."""
        return self.left.shape[1] == 0 and self.gain == 1.0 and not bool(self.offset.any())

    def __call__(self, x: Tensor) -> Tensor:
        """Map a vector `(width,)`, its offset left out."""
        return self.gain * (x + self.left @ (self.right @ x))

    def constant_along(self, unit: Tensor) -> float | None:
        """Return what is left along a unit vector `(width,)`, if that is the same of all that is mapped."""
        row = self.gain * (unit + (unit @ self.left) @ self.right)
        if float(row.norm()) > _GONE:
            return None
        found = float(unit @ self.offset)
        return 0.0 if abs(found) <= _ROUNDING * float(self.offset.norm()) else found


def composed(width: int, ops: Sequence[MapOp]) -> Affinity:
    """Apply maps one after the other."""
    left, right = torch.zeros(width, 0).double(), torch.zeros(0, width).double()
    offset, gain, largest = torch.zeros(width).double(), 1.0, 0.0
    for op in ops:
        factor, shift = float(op.change.factor), float(op.change.shift)
        if op.unit is None:
            gain, offset = gain * factor, offset * factor
            continue
        v = op.unit
        # (I + (s-1) v v') (I + L R) = I + L R + (s-1) v (v' + v' L R)
        if factor != 1.0:
            row = (factor - 1.0) * (v + (v @ left) @ right)
            left, right = torch.cat([left, v[:, None]], 1), torch.cat([right, row[None]])
        offset = offset + ((factor - 1.0) * float(v @ offset) + shift) * v
        largest = max(largest, float(offset.norm()))
    if float(offset.norm()) <= _ROUNDING * largest:
        offset = torch.zeros_like(offset)
    return Affinity(left=left, right=right, offset=offset, gain=gain)


def later(width: int, ops: Iterable[MapOp], site: Site, moment: When) -> Affinity:
    """Return what maps of one module's output, or input, do to what arrives there at some moment.

    Args:
        width: Of the site.
        ops: In the order of a forward pass.
        site: Of the module.
        moment: What acts before it is left out.
    """
    return composed(width, [op for op in ops if op.site == site and op.when > moment])
