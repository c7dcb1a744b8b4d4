"""Covariances of few vectors, shrunk as far as their own noise asks for."""

from __future__ import annotations

import torch
from torch import Tensor


def shrunk_covariance(rows: Tensor, sources: Tensor | None = None) -> Tensor:
    """Return the covariance of centred rows `(n, d)`, drawn towards its mean variance.

    The share is Ledoit and Wolf's (2004, section 3.3): the part of the distance to a multiple of the identity
    that sampling noise accounts for. With `sources (n,)` it is sources that are sampled, not rows.
    """
    n, d = rows.shape
    covariance = rows.T @ rows / n
    mean = covariance.diagonal().mean()
    target = mean * torch.eye(d, dtype=rows.dtype)
    distance = (covariance - target).square().sum()
    if sources is None:
        noise = (rows.square().sum(1).square().sum() / n - covariance.square().sum()) / n
    else:
        noise = _noise_between(rows, covariance, sources)
    share = float((noise / distance.clamp_min(1e-300)).clamp(0, 1))
    return (1 - share) * covariance + share * target


def _noise_between(rows: Tensor, covariance: Tensor, sources: Tensor) -> Tensor:
    """Return the expected squared error of a covariance whose rows come in independent groups."""
    total, groups = rows.new_zeros(()), sources.unique()
    for group in groups:
        own = rows[sources == group]
        total += (own.T @ own - len(own) * covariance).square().sum()
    return total / len(rows) ** 2 * len(groups) / (len(groups) - 1)
