"""Affine erasers of pooled activations: LEACE, and iterated null-space projection (INLP)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.errors import InvalidRequestError
from trephine.engine.erasure.logistic import fit_logistic

_RANK = 1e-10
"""Directions with less than this share of the largest variance are constant: their whitening is noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Eraser:
    """Removes a concept: `x - (x - mean) @ proj_right.T @ proj_left.T`, float64 inside."""

    mean: Tensor
    """`(width,)`."""
    proj_left: Tensor
    """`(width, rank)`."""
    proj_right: Tensor
    """`(rank, width)`."""

    @property
    def rank(self) -> int:
        """Directions that are removed."""
        return int(self.proj_left.shape[1])

    def __call__(self, x: Tensor) -> Tensor:
        """Erase from activations `(rows, width)`, in their own dtype."""
        wide = x.double()
        return (wide - (wide - self.mean) @ self.proj_right.T @ self.proj_left.T).to(x.dtype)


def fit_leace(x: Tensor, concept: Tensor) -> Eraser:
    """Fit LEACE: the least-squares smallest change after which no linear probe beats a constant.

    x' = x - W^+ U U^T W (x - mean), with W = Cov(x)^(-1/2) and U an orthonormal basis of the columns of
    W Cov(x, z) (Belrose et al. 2023, theorem 4.3).

    Args:
        x: Activations `(rows, width)`.
        concept: Class of every row, `(rows,)`, integers.

    Raises:
        InvalidRequestError: If there is one class alone.
    """
    classes = _classes(concept)
    wide = x.double()
    mean = wide.mean(0)
    centred = wide - mean
    indicators = (concept[:, None] == classes).double()
    cross = centred.T @ (indicators - indicators.mean(0)) / len(x)
    whiten, colour = _whitening(centred.T @ centred / len(x))
    basis, sizes, _ = torch.linalg.svd(whiten @ cross, full_matrices=False)
    basis = basis[:, sizes > sizes.max() * _RANK]  # k classes: rank k - 1 at most
    return Eraser(mean=mean, proj_left=colour @ basis, proj_right=basis.T @ whiten)


def _classes(concept: Tensor) -> Tensor:
    classes = concept.unique()
    if classes.numel() < 2:
        raise InvalidRequestError("erasing a concept needs rows of at least two classes", field="concept")
    return classes


def _whitening(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the symmetric square root of the pseudo-inverse, and its own pseudo-inverse."""
    variances, axes = torch.linalg.eigh(covariance)
    kept = variances > variances.max() * _RANK
    axes, deviations = axes[:, kept], variances[kept].sqrt()
    return (axes / deviations) @ axes.T, (axes * deviations) @ axes.T


def fit_inlp(x: Tensor, concept: Tensor, *, rounds: int, penalty: float = 1e-2) -> Eraser:
    """Fit INLP: train a probe of the concept, project its direction out, and again (Ravfogel et al. 2020).

    Stops early where a probe is no better on its own training rows than the larger class.

    Args:
        x: Activations `(rows, width)`.
        concept: `(rows,)`, 0 or 1.
        rounds: Probes at most, which is the rank of what is removed.
        penalty: Of every probe.

    Raises:
        InvalidRequestError: If there is one class alone.
    """
    *_, eraser = inlp_rounds(x, concept, rounds=rounds, penalty=penalty)
    return eraser


def inlp_rounds(x: Tensor, concept: Tensor, *, rounds: int, penalty: float = 1e-2) -> Iterator[Eraser]:
    """Yield the eraser of `fit_inlp` before the first round, and after every one: a fit a quantum."""
    _classes(concept)
    wide = x.double()
    mean = wide.mean(0)
    majority = float(max(concept.double().mean(), 1 - concept.double().mean()))
    basis = torch.zeros(wide.shape[1], 0, dtype=torch.float64)
    yield Eraser(mean=mean, proj_left=basis, proj_right=basis.T)
    for _ in range(min(rounds, wide.shape[1])):
        left = wide - (wide - mean) @ basis @ basis.T
        weight, bias = fit_logistic(left, concept, penalty=penalty)
        accuracy = float(((left @ weight + bias > 0) == (concept == 1)).double().mean())
        direction = weight - basis @ (basis.T @ weight)
        if accuracy <= majority or float(direction.norm()) == 0.0:
            return
        basis = torch.cat([basis, (direction / direction.norm())[:, None]], dim=1)
        yield Eraser(mean=mean, proj_left=basis, proj_right=basis.T)
