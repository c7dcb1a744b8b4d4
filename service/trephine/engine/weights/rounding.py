"""What rounding to the type of the files leaves over of exact changes, so that a plan can say it.

In float32 files that is less than the arithmetic of a forward pass; in bfloat16 a factor of 0.99 is one step.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trephine.engine.models.shards import DTYPES, read_tensor
from trephine.engine.weights.tensors import (
    NARROW,
    ROUNDING_SEED,
    TensorChange,
    is_drawn,
    rounding_error,
    scaling_errors,
)

_NAMED = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """How a tensor's changes are rounded: mean squared rounding error over mean squared change."""

    whole: float = 0.0
    """Of all that is changed in a tensor."""
    slices: Mapping[int, float] = field(default_factory=dict)
    """Of each scaled slice alone."""
    drawn: bool = False
    """Whether some of it is rounded stochastically."""
    sum_drawn: bool = False
    """Whether all of it is: what is added would vanish, or a factor of the whole tensor."""


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
        drawn = is_drawn(change, parent, dtype)
        found[change.name] = Rounding(
            whole=rounding_error(change, parent, dtype),
            slices=scaling_errors(change, parent, dtype) if change.factors else {},
            drawn=drawn,
            sum_drawn=drawn and change.is_sum,
        )
        yield
    return found


def _changes_parent(change: TensorChange) -> bool:
    return change.is_sum or bool(change.factors)


def on_record(drawn: Sequence[str]) -> dict[str, str]:
    """Return what a certificate says of stochastic rounding: its seed, and up to eight of the tensors.

    Args:
        drawn: Tensors of which elements were rounded stochastically; the manifest names all.
    """
    more = len(drawn) - _NAMED
    names = ", ".join(drawn[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    return {"rounding_seed": str(ROUNDING_SEED), "rounded_stochastically": names or "none"}
