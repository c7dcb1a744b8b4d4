"""Rank correlations and slopes of what was predicted and measured, along the last dimension."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Statistic = Callable[[Tensor, Tensor], Tensor]
"""Of `x (..., n)` and `y (..., n)`: `(...,)`."""


def ranks(values: Tensor) -> Tensor:
    """Rank along the last dimension, from 0, ties averaged: float64, NaN in rows where any is no number."""
    known = values.isfinite().all(-1, keepdim=True)
    ordered = values.sort(-1).values.contiguous()
    below, through = (
        torch.searchsorted(ordered, values.contiguous(), right=right) for right in (False, True)
    )
    return torch.where(known, (below + through - 1).double() / 2, torch.nan)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation along the last dimension; 0 where one side is constant."""
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    norm = a.norm(dim=-1) * b.norm(dim=-1)
    return torch.where(norm == 0, 0.0, (a * b).sum(-1) / norm.clamp_min(1e-300))


def spearman(x: Tensor, y: Tensor) -> Tensor:
    """Spearman's rank correlation along the last dimension, ties averaged.

    0 where one side is constant, NaN where anything is no number.
    """
    return pearson(ranks(x), ranks(y))


def slope(x: Tensor, y: Tensor) -> Tensor:
    """Least-squares slope of y on x through 0, along the last dimension; 0 where x is all zero."""
    square = (x * x).sum(-1)
    return torch.where(square > 0, (x * y).sum(-1) / square.clamp_min(1e-300), 0.0)
