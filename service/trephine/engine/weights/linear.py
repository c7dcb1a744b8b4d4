"""Affine maps of what a linear module reads or writes, as low-rank changes of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.engine.weights.operations import MapOp


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


def composed(width: int, ops: Sequence[MapOp]) -> Affinity:
    """Apply maps one after the other."""
    left, right = torch.zeros(width, 0).double(), torch.zeros(0, width).double()
    offset, gain = torch.zeros(width).double(), 1.0
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
    return Affinity(left=left, right=right, offset=offset, gain=gain)
