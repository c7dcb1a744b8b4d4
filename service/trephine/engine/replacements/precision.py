"""The dtype of arithmetic: float32 or wider, whatever weights are stored in."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 or wider; itself if it is that already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
