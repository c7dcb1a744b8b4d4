"""Covariances of few vectors, shrunk as far as their own noise asks for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Covariance:
    """Of few vectors, and how far their noise asks for it to be drawn towards its mean variance."""

    plain: Tensor
    """`(d, d)`."""
    share: float
    """Ledoit and Wolf's, 0 to 1."""

    def shrunk(self, factor: float = 1.0) -> Tensor:
        """Return it drawn by so many times that share, `(d, d)`."""
        share, mean = min(factor * self.share, 1.0), self.plain.diagonal().mean()
        return (1 - share) * self.plain + share * mean * torch.eye(len(self.plain), dtype=self.plain.dtype)


def covariance_of(rows: Tensor, sources: Tensor | None = None) -> Covariance:
    """Return the covariance of centred rows `(n, d)`.

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
    return Covariance(plain=covariance, share=share)


def _noise_between(rows: Tensor, covariance: Tensor, sources: Tensor) -> Tensor:
    """Return the expected squared error of a covariance whose rows come in independent groups.

    The sum over groups of |G - m C|^2, G the products of a group's m rows: |G|^2 is that of their inner
    products, so that no group of a few rows costs a matrix of the width.
    """
    total, groups = rows.new_zeros(()), sources.unique()
    along, size = ((rows @ covariance) * rows).sum(1), covariance.square().sum()
    for group in groups:
        at = sources == group
        own, count = rows[at], int(at.sum())
        products = own @ own.T if count < rows.shape[1] else own.T @ own
        total += products.square().sum() - 2 * count * along[at].sum() + count**2 * size
    return total / len(rows) ** 2 * len(groups) / (len(groups) - 1)
