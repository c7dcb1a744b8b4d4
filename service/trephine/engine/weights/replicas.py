"""Neurons that survive a block quantiser: several of each, whose errors cancel in their sum.

Four bits leave a row's entries right to a sixteenth of the largest in their block, and a steep unit
multiplies that. Width is padded to 256 neurons anyway, so a unit is written many times over: each copy lies
on the quantiser's own grid, which a second rounding leaves as it is, and what one copy's rounding left out is
added to what the next one is to hold. Their mean is then off by one rounding over their number, and not over
its root. Thirty-two copies fill a block of the down projection with one value, which every quantiser keeps.
"""

from __future__ import annotations

import gguf
import torch
from torch import Tensor

from trephine.domain.exports import GGUF_TYPES, GgufType
from trephine.engine.weights.gguf_families import stored_type

_COPIES = {"q8_0": 8}
_MOST_COPIES = 32


def coarsest(kinds: tuple[GgufType, ...]) -> GgufType | None:
    """Return the file type that needs most care; None without files."""
    return max(kinds, key=GGUF_TYPES.index, default=None)


def copies_for(kind: GgufType | None) -> int:
    """Return how many neurons make one unit."""
    return 1 if kind is None else _COPIES.get(kind, _MOST_COPIES)


def spread_rows(row: Tensor, kind: GgufType | None, dtype: torch.dtype) -> Tensor:
    """Return a row's copies, rounded, their mean as near to it as they can come.

    Args:
        row: float64 `(d_in,)`.
        kind: What the file's matrices are quantised to; None: one copy, rounded to the dtype alone.
        dtype: Of the checkpoint.

    Returns:
        float64 `(copies, d_in)`.
    """
    if kind is None:
        return row.to(dtype).to(torch.float64)[None]
    copies, left = [], torch.zeros_like(row)
    for _ in range(copies_for(kind)):
        copies.append(_on_grid(row + left, kind).to(dtype).to(torch.float64))
        left = row + left - copies[-1]
    return torch.stack(copies)


def _on_grid(row: Tensor, kind: GgufType) -> Tensor:
    stored = stored_type("", (1, row.numel()), kind)
    values = gguf.dequantize(gguf.quantize(row.float().cpu().numpy()[None], stored), stored)
    return torch.from_numpy(values.reshape(-1)).to(torch.float64)
