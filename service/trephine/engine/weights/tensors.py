"""The change of one tensor: what is scaled, added, appended or new, in which order, rounded once.

A change is data, so that the certifier can carry it out again from the parent's files with code of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from trephine.engine.models.shards import TensorEntry, scale_slices

VANISHING = 3e-3
"""Relative size of a delta below which nearest rounding to bfloat16 would lose part of it."""
_FADING = 0.5
"""Steps of a type (its eps) below which a factor's distance from 1 leaves elements as they were when they are
rounded to nearest: at 0.13 steps (0.999 in bfloat16) all of them, at 0.32 (0.9975) 64 %."""
NARROW = (torch.bfloat16, torch.float16)
"""Types whose rounding can be seen in what a model answers."""
ROUNDING_SEED = 20_240_817
"""Of stochastic rounding, with the name of the tensor that is rounded; it stands in every certificate."""
_BLOCK_ELEMENTS = 1 << 20
_BLOCKS = 64
"""A tensor is summed in at least so many blocks of rows, for what is float64 is many times its size."""


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

    @property
    def is_sum(self) -> bool:
        """True if the whole tensor is computed anew, and not some slices alone."""
        return self.low_rank is not None or self.added is not None or self.gain != 1.0

    def fading(self, dtype: torch.dtype) -> tuple[int, ...]:
        """Return the scaled slices of which nearest rounding would leave elements as they were."""
        return tuple(index for index, factor in self.factors.items() if fades(factor * self.gain, dtype))


def fades(factor: float, dtype: torch.dtype) -> bool:
    """Say whether nearest rounding would lose elements of what a factor changes, (f - 1) w."""
    return dtype in NARROW and 0 < abs(factor - 1.0) < _FADING * torch.finfo(dtype).eps


def carried_out(change: TensorChange, parent: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return the changed tensor, computed in float32 or wider and rounded once.

    To nearest, or stochastically where a small change would vanish.

    Args:
        change: What is to be done.
        parent: The parent's tensor, or the one that a new tensor is copied from; None for a new bias. Its
            memory may be taken for the result, so that no two tensors are held at once.
        dtype: Of the result.
    """
    if change.fresh is not None or parent is None:
        fresh = change.fresh or Fresh(size=0, start=0, values=None)
        return fresh.build(dtype)
    if change.is_sum:
        tensor = _summed(change, parent, dtype)
    else:
        tensor = _scaled(change, parent, dtype) if change.factors else parent
    if change.growth is not None:
        other = None if tensor.ndim == 1 else tensor.shape[1 - change.growth.axis]
        tensor = torch.cat([tensor, change.growth.build(other, dtype)], dim=change.growth.axis)
    return tensor


def _scaled(change: TensorChange, parent: Tensor, dtype: torch.dtype) -> Tensor:
    """Scale slices, rounded to nearest; stochastically where that would leave elements as they were."""
    tensor, draws = scale_slices(parent, change.factors, axis=change.axis), _draws(change.name)
    for index in change.fading(dtype):
        exact = parent.select(change.axis, index).to(torch.float64) * change.factors[index]
        tensor.select(change.axis, index).copy_(stochastic(exact, dtype, draws))
    return tensor


def _summed(change: TensorChange, parent: Tensor, dtype: torch.dtype) -> Tensor:
    """Scale, add and round in blocks of rows: to nearest, or stochastically where a delta would vanish.

    Nearest rounding to bfloat16 leaves 98 % of the entries as they were at a relative size of 1e-4, and
    keeps 0.68 of the delta at 1e-3; stochastic rounding keeps all of it, for 1.4 times the noise. Seeded;
    one generator runs through all blocks, so that their size changes nothing.
    """
    drawn = is_drawn(change, parent, dtype)
    draws = _draws(change.name)
    result = parent if parent.dtype == dtype else torch.empty(parent.shape, dtype=dtype)
    for start, stop in _blocks(parent):
        exact, delta = _wide(change, parent, start, stop)
        if delta is not None:
            exact += delta
        result[start:stop] = stochastic(exact, dtype, draws) if drawn else exact.to(dtype)
    return result


def is_drawn(change: TensorChange, parent: Tensor, dtype: torch.dtype) -> bool:
    """Say whether rounding is stochastic, in some slices or, of a sum, in the whole tensor.

    It is where what is added or scaled changes so little that nearest rounding would lose part of it.

    Args:
        change: What is to be done.
        parent: The parent's tensor; it stays as it is.
        dtype: Of the result.
    """
    if dtype not in NARROW:
        return False
    if change.fading(dtype) or fades(change.gain, dtype):
        return True
    if not change.is_sum:
        return False
    there = added = 0.0
    for start, stop in _blocks(parent):
        wide, delta = _wide(change, parent, start, stop)
        there += float(wide.square().sum())
        added += 0.0 if delta is None else float(delta.square().sum())
    return 0 < added < VANISHING**2 * there


def _blocks(tensor: Tensor) -> Iterator[tuple[int, int]]:
    """Yield the first row of every block and the one behind its last."""
    rows = tensor.shape[0]
    columns = max(1, tensor.numel() // max(1, rows))
    step = max(1, min(rows // _BLOCKS, _BLOCK_ELEMENTS // columns))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def _wide(change: TensorChange, parent: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
    """Return a block of rows, scaled, and what is added to it, float64."""
    factors = change.factors
    if change.axis == 0:
        factors = {index - start: factor for index, factor in factors.items() if start <= index < stop}
    wide = scale_slices(parent[start:stop].to(torch.float64), factors, axis=change.axis) * change.gain
    if change.low_rank is not None:
        left, right = change.low_rank
        return wide, left[start:stop] @ right
    return wide, None if change.added is None else change.added[start:stop]


def rounding_error(change: TensorChange, parent: Tensor, dtype: torch.dtype) -> float:
    """Return what rounding leaves over of a change: mean squared error over mean squared change.

    Of the parent's own slices; 0 where nothing changes.

    Args:
        change: What is to be done.
        parent: The parent's tensor; it stays as it is.
        dtype: Of the result.
    """
    written = carried_out(replace(change, growth=None), parent.to(dtype, copy=True), dtype)
    left = moved = 0.0
    for start, stop in _blocks(parent):
        exact, delta = _wide(change, parent, start, stop)
        if delta is not None:
            exact += delta
        left += float((written[start:stop].to(torch.float64) - exact).square().sum())
        moved += float((parent[start:stop].to(torch.float64) - exact).square().sum())
    return left / moved if moved else 0.0


def scaling_errors(change: TensorChange, parent: Tensor, dtype: torch.dtype) -> dict[int, float]:
    """Return the same of each scaled slice alone."""
    alone = replace(change, growth=None, low_rank=None, added=None)
    written, errors = carried_out(alone, parent.to(dtype, copy=True), dtype), {}
    for index, factor in change.factors.items():
        before, after = (t.select(change.axis, index).to(torch.float64) for t in (parent, written))
        exact = before * factor * change.gain
        moved = float((exact - before).square().sum())
        errors[index] = float((after - exact).square().sum()) / moved if moved else 0.0
    return errors


def wide_product(matrix: Tensor, factor: Tensor) -> Tensor:
    """Return `matrix @ factor` in float64, `(rows, k)`, with no more than a block of rows of it in float64.

    An embedding has a gigabyte and more: a float64 copy of it would be four times that.
    """
    parts = [matrix[start:stop].to(torch.float64).cpu() @ factor for start, stop in _blocks(matrix)]
    return torch.cat(parts)


def _draws(name: str) -> torch.Generator:
    """Begin the draws of a tensor: two of one shape do not share theirs."""
    digest = hashlib.sha256(f"{ROUNDING_SEED} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def stochastic(exact: Tensor, dtype: torch.dtype, draws: torch.Generator) -> Tensor:
    """Round to one of the two neighbours, with odds by distance, so that the mean is exact.

    Args:
        exact: float64.
        dtype: To round to.
        draws: Where draws go on.
    """
    near = exact.to(dtype)
    error = exact - near.to(torch.float64)
    toward = torch.where(error > 0, torch.inf, -torch.inf).to(dtype)
    other = torch.nextafter(near, toward)
    gap = (other.to(torch.float64) - near.to(torch.float64)).abs()
    draw = torch.rand(exact.shape, generator=draws, dtype=torch.float64)
    return torch.where((error != 0) & (draw < error.abs() / gap), other, near)
