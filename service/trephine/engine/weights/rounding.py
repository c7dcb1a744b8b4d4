"""What rounding to the type of the files leaves over of exact changes, so that a plan can say it.

In float32 files that is less than the arithmetic of a forward pass; in bfloat16 a factor of 0.99 is one step.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trephine.engine.shards import DTYPES, read_tensor
from trephine.engine.weights.tensors import NARROW, TensorChange, rounding_error, scaling_errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """Mean squared rounding error over mean squared change."""

    whole: float = 0.0
    """Of all that is changed in a tensor."""
    slices: Mapping[int, float] = field(default_factory=dict)
    """Of each scaled slice alone."""


def roundings(folder: Path, changes: Iterable[TensorChange]) -> Generator[None, None, Mapping[str, Rounding]]:
    """Carry out every change of a tensor whose type is narrow, one a quantum; what is appended is left out.

    Args:
        folder: The parent's.
        changes: All that is written.
    """
    found: dict[str, Rounding] = {}
    for change in changes:
        dtype = DTYPES[change.dtype]
        if change.entry is None or dtype not in NARROW or not _changes_parent(change):
            continue
        parent = read_tensor(folder, change.entry)
        found[change.name] = Rounding(
            whole=rounding_error(change, parent, dtype),
            slices=scaling_errors(change, parent, dtype) if change.factors else {},
        )
        yield
    return found


def _changes_parent(change: TensorChange) -> bool:
    summed = change.low_rank is not None or change.added is not None
    return summed or bool(change.factors) or change.gain != 1.0
