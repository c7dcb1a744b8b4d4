"""What decisions on texts and on their twins tell of the label, of the one bit that there is.

How many of a few texts are decided right tells numbers of features badly apart: of the 38 of one label, four
are a tenth. How sure the same decisions are tells more, and much of what chance does is alike for two heads
that decide on the same texts: they are compared text by text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

_STEPS = 60
"""Halvings of the slope's interval: as many as float64 has digits for."""
_STEEPEST = 1e3
"""Of slopes, per mean margin."""
_WILD = 10
"""Median margins that the mean is taken for at most: one text must not set the unit of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Margins of texts and of their twins, float64 `(n,)` each: above 0 is the second label."""

    labels: Tensor
    """int64 `(n,)`, 0 or 1."""
    texts: Tensor
    twins: Tensor

    @property
    def flips(self) -> float:
        """Share of the texts that are decided otherwise than their twins."""
        return float(((self.texts > 0) != (self.twins > 0)).double().mean())

    def information(self) -> Tensor:
        """Return what is told of the label by a text and its twin, bits `(n,)`: 1 at most, below 0 if wrong.

        1 + log2 of the label's probability, with the margin as log-odds up to one slope, which is that of
        most information over all (Platt 1999, without his offset: the threshold is what is judged). One miss
        as large as the mean margin counts besides, so that a few texts are never told for certain. A decision
        that follows the attribute is right on texts and wrong on twins, has slope 0, and tells nothing.
        """
        sides = 2 * self.labels.double() - 1
        right = torch.stack([self.texts, self.twins]).double() * sides  # (2, n): above 0 is right
        weights = _weights(self.labels)
        slope = _slope(right, weights)
        return (1 - softplus(-slope * right) / math.log(2)).mean(0)

    def mean(self, values: Tensor) -> tuple[float, float]:
        """Return the mean of values `(n,)` with either label counting half, and its standard error."""
        value, variance = 0.0, 0.0
        for own in (values[self.labels == label] for label in (0, 1)):
            value += float(own.sum()) / max(len(own), 1) / 2
            variance += float(own.var()) / len(own) / 4 if len(own) > 1 else 0.25
        return value, math.sqrt(variance)


def _weights(labels: Tensor) -> Tensor:
    """Weigh texts so that either label counts half, `(n,)`."""
    counts = torch.bincount(labels, minlength=2).double().clamp_min(1)
    return 0.5 / counts[labels]


def _slope(right: Tensor, weights: Tensor) -> float:
    """Return the slope of least loss, 0 or above; `right` is `(2, n)`, weights `(n,)`.

    Its derivative falls as the slope grows, so that halving finds where it is 0.
    """
    sizes = right.abs()
    scale = torch.minimum(sizes.mean(), _WILD * sizes.median()).clamp_min(1e-300)
    margins = torch.cat([right.flatten() / scale, -torch.ones(1).double()])
    shares = torch.cat([weights.repeat(2) / 2, weights.new_full((1,), 0.5 / max(right.shape[1], 1))])

    def steeper(slope: float) -> bool:
        return float((shares * margins * torch.sigmoid(-slope * margins)).sum()) > 0

    low, high = 0.0, _STEEPEST
    if not steeper(0.0):
        return 0.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if steeper(middle) else (low, middle)
    return low / float(scale)
