"""What the type of the files cannot hold: refused in the plan, before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isfinite

import torch

from trephine.domain.errors import EditNotExpressibleError
from trephine.engine.models.shards import DTYPES
from trephine.engine.weights.rounding import Rounding
from trephine.engine.weights.tensors import TensorChange


def require_finite(changes: Iterable[TensorChange], rounded: Mapping[str, Rounding]) -> None:
    """Refuse changes of which a number overflows in the type that it is written in.

    Args:
        changes: All that is written.
        rounded: Of the parent's tensors that are changed in a narrow type, how they come out.

    Raises:
        EditNotExpressibleError: Naming the tensor, its type and what to do.
    """
    for change in changes:
        rounding = rounded.get(change.name)
        if (rounding is not None and not isfinite(rounding.whole)) or _overflows(change):
            most = torch.finfo(DTYPES[change.dtype]).max
            wider = (
                ", or start from a parent whose files are bfloat16 or float32"
                if DTYPES[change.dtype] == torch.float16
                else ""
            )
            raise EditNotExpressibleError(
                f"{change.name} would hold numbers beyond the {most:g} that {change.dtype} ends at: make the "
                f"edit weaker{wider}",
                field="interventions",
            )


def _overflows(change: TensorChange) -> bool:
    """Look at what is new; the parent's own numbers are in `rounded`."""
    parts = (change.growth, change.fresh)
    new = (part.values for part in parts if part is not None and part.values is not None)
    return any(not bool(values.to(DTYPES[change.dtype]).isfinite().all()) for values in new)
