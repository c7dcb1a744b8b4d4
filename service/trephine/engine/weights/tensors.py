"""The change of one tensor: what is scaled, added, appended or new, in which order, rounded once.

A change is data, so that the certifier can carry it out again from the parent's files with code of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from trephine.engine.shards import TensorEntry, scale_slices

VANISHING = 3e-3
"""Relative size of a delta below which nearest rounding to bfloat16 would lose part of it."""
_SEED = 20_240_817


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Slices appended along one axis; those without values are zero."""

    axis: int
    count: int
    values: Tensor | None
    """float64 `(k, other)` or `(k,)`, k <= count: the first slices, each as a row."""

    def build(self, other: int | None, dtype: torch.dtype) -> Tensor:
        """Return the appended block in its place's orientation."""
        rows = (
            torch.zeros(self.count, dtype=dtype)
            if other is None
            else torch.zeros(self.count, other).to(dtype)
        )
        if self.values is not None:
            rows[: self.values.shape[0]] = self.values.to(dtype)
        return rows if other is None or self.axis == 0 else rows.T.contiguous()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fresh:
    """A bias that the parent has not: zeros but for some values."""

    size: int
    start: int
    values: Tensor | None

    def build(self, dtype: torch.dtype) -> Tensor:
        """Return it."""
        tensor = torch.zeros(self.size, dtype=dtype)
        if self.values is not None:
            tensor[self.start : self.start + self.values.shape[0]] = self.values.to(dtype)
        return tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorChange:
    """One tensor of the export that is not the parent's."""

    name: str
    file: str
    """The shard that it is written to."""
    dtype: str
    """As safetensors writes it."""
    layer: int
    entry: TensorEntry | None
    """In the parent; None: the parent does not have it."""
    copied_from: TensorEntry | None = None
    """Of a new tensor that begins as a copy: an unembedding that is no longer tied."""
    axis: int = 1
    """Of `factors`. 1: columns; 0: rows, where the projection is stored transposed (GPT-2)."""
    factors: dict[int, float] = field(default_factory=dict)
    """Index -> factor; none of them leaves its slice as it is."""
    gain: float = 1.0
    """Of the whole tensor."""
    low_rank: tuple[Tensor, Tensor] | None = None
    """float64 `(rows, k)` and `(k, columns)`; their product is added."""
    added: Tensor | None = None
    """float64, added to a bias."""
    growth: Growth | None = None
    fresh: Fresh | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the result."""
        if self.fresh is not None:
            return (self.fresh.size,)
        source = self.entry or self.copied_from
        if source is None:
            raise ValueError(f"{self.name} has neither a parent nor values")
        shape = list(source.shape)
        if self.growth is not None:
            shape[self.growth.axis] += self.growth.count
        return tuple(shape)

    @property
    def keeps_shape(self) -> bool:
        """True if the parent's bytes can be written over in place."""
        return self.entry is not None and self.growth is None


def carried_out(change: TensorChange, parent: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the changed tensor, computed in float32 or wider and rounded once.

    Args:
        change: What is to be done.
        parent: The parent's tensor, or the one that a new tensor is copied from; None for a new bias.
        dtype: Of the result.
    """
    if change.fresh is not None or parent is None:
        fresh = change.fresh or Fresh(size=0, start=0, values=None)
        return fresh.build(dtype)
    delta = _delta(change)
    if delta is None and change.gain == 1.0:
        tensor = scale_slices(parent, change.factors, axis=change.axis) if change.factors else parent
    else:
        wide = scale_slices(parent.to(torch.float64), change.factors, axis=change.axis) * change.gain
        tensor = round_once(wide, delta, dtype)
    if change.growth is not None:
        other = None if tensor.ndim == 1 else tensor.shape[1 - change.growth.axis]
        tensor = torch.cat([tensor, change.growth.build(other, dtype)], dim=change.growth.axis)
    return tensor


def _delta(change: TensorChange) -> Tensor | None:
    if change.low_rank is not None:
        left, right = change.low_rank
        return left @ right
    return change.added


def round_once(wide: Tensor, delta: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Add a float64 delta and round: to nearest, or stochastically where a small delta would vanish.

    Nearest rounding to bfloat16 leaves 98 % of the entries as they were at a relative size of 1e-4, and
    keeps 0.68 of the delta at 1e-3; stochastic rounding keeps all of it, for 1.4 times the noise. Seeded.
    """
    if delta is None:
        return wide.to(dtype)
    exact = wide + delta
    if dtype not in (torch.bfloat16, torch.float16):
        return exact.to(dtype)
    small = bool(0 < delta.norm() < VANISHING * wide.norm())
    return stochastic(exact, dtype) if small else exact.to(dtype)


def stochastic(exact: Tensor, dtype: torch.dtype, seed: int = _SEED) -> Tensor:
    """Round to one of the two neighbours, with odds by distance, so that the mean is exact."""
    near = exact.to(dtype)
    error = exact - near.to(torch.float64)
    toward = torch.where(error > 0, torch.inf, -torch.inf).to(dtype)
    other = torch.nextafter(near, toward)
    gap = (other.to(torch.float64) - near.to(torch.float64)).abs()
    draw = torch.rand(exact.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.where((error != 0) & (draw < error.abs() / gap), other, near)
