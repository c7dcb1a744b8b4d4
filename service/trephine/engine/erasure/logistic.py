"""Two-class logistic regression with an L2 penalty, by Newton steps: deterministic, no autograd."""

from __future__ import annotations

import torch
from torch import Tensor

_STEPS = 100
_TOLERANCE = 1e-9
"""Of the gradient's largest entry, float64."""
_SMALL = 1e-6
"""Scale, relative to the largest, below which an input counts as constant."""


def fit_logistic(x: Tensor, y: Tensor, *, penalty: float, stock: bool = False) -> tuple[Tensor, float]:
    """Fit `P(y = 1) = sigmoid(x @ weight + bias)`.

    Inputs are standardised inside: mean and deviation are folded into what is returned. The mean negative
    log-likelihood plus `penalty / 2 * |w|^2` on the standardised weights is minimised; the bias is free.

    Args:
        x: `(n, d)`.
        y: `(n,)`, 0 or 1, both occurring.
        penalty: Above 0.
        stock: No bias and no centring: the form of a stock classification head.

    Returns:
        float64 weight `(d,)` and bias.
    """
    wide = x.double()
    mean = torch.zeros_like(wide[0]) if stock else wide.mean(0)
    scale = (wide - wide.mean(0)).std(0)
    scale = torch.where(scale > _SMALL * scale.max(), scale, torch.inf)
    u, s, vh = torch.linalg.svd((wide - mean) / scale, full_matrices=False)
    reduced = u * s  # (n, k): the solution lies in the span of the data
    if not stock:
        reduced = torch.cat([reduced, torch.ones_like(reduced[:, :1])], 1)
    ridge = torch.full_like(reduced[0], penalty)
    if not stock:
        ridge[-1] = 0
    found = _newton(reduced, y.double(), ridge)
    weight = (found if stock else found[:-1]) @ vh / scale
    return weight, 0.0 if stock else float(found[-1] - mean @ weight)


def _newton(x: Tensor, y: Tensor, ridge: Tensor) -> Tensor:
    """Minimise mean softplus((1 - 2y) x w) + ridge w^2 / 2, halving steps that do not go down."""
    w = torch.zeros_like(x[0])
    for _ in range(_STEPS):
        p = torch.sigmoid(x @ w)
        gradient = x.T @ (p - y) / len(x) + ridge * w
        if gradient.abs().max() < _TOLERANCE:
            break
        curvature = (x * (p * (1 - p))[:, None]).T @ x / len(x) + torch.diag(ridge.clamp_min(1e-12))
        step = torch.linalg.solve(curvature, gradient)
        size, before = 1.0, _loss(x, y, ridge, w)
        while size > 1e-6 and _loss(x, y, ridge, w - size * step) > before:
            size /= 2
        w = w - size * step
    return w


def _loss(x: Tensor, y: Tensor, ridge: Tensor, w: Tensor) -> float:
    return float(torch.nn.functional.softplus((1 - 2 * y) * (x @ w)).mean() + (ridge * w * w).sum() / 2)
