"""How features of a layer are named: by a list, or by a tensor that is already where the weights are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Indices = Sequence[int] | Tensor
"""Feature numbers, int64 `(n,)` if a tensor."""


def chosen(indices: Indices) -> list[int] | Tensor:
    """Return what a weight can be indexed with."""
    return indices if isinstance(indices, Tensor) else list(indices)
