"""What a dictionary does to its input before it reads it, as values instead of state on the layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from torch import Tensor

_LAYER_NORM_EPS = 1e-5
"""SAELens adds it to the standard deviation, not to the variance, and leaves it out on the way back."""


class NormalisationRule(StrEnum):
    """Named as SAELens names them."""

    NONE = "none"
    EXPECTED_AVERAGE = "expected_average_only_in"
    """One factor for all inputs; folded into the weights at the end of training unless the file names it."""
    CONSTANT_NORM = "constant_norm_rescale"
    """Every input is scaled to norm sqrt(d_in)."""
    LAYER_NORM = "layer_norm"


UNNAMED_FACTOR = "expected_average_only_in, factor not named"
"""How a layer of that rule is described whose file does not give the factor: it is read as 1."""
WITHOUT_MEAN = "without the mean over dimensions"
"""How a layer is described further that was trained in a model with centred weights."""
UNNAMED_CENTRING = "centring not named"
"""How one is described whose file is older than the setting: it is read as not centred."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalised:
    """An input after normalisation, and what was taken out of it."""

    x: Tensor
    """`(..., d_in)`."""
    centre: Tensor | float = 0.0
    scale: Tensor | float = 1.0
    centre_out: Tensor | float = 0.0
    scale_out: Tensor | float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalisation:
    """A rule and whether outputs undo it."""

    rule: NormalisationRule = NormalisationRule.NONE
    undone: bool = True
    """True for SAEs, which write what they read; transcoders write something else."""
    factor: float = 1.0
    """Of `expected_average_only_in`: inputs are multiplied by it."""
    without_mean: bool = False
    """The mean over dimensions is taken out before the rule, and put back where the rule is undone."""

    def __call__(self, x: Tensor) -> Normalised:
        """Normalise activations `(..., d_in)`, float32 or wider."""
        if not self.without_mean:
            return self._by_rule(x)
        mean = x.mean(dim=-1, keepdim=True)
        read = self._by_rule(x - mean)
        put_back = read.centre_out + mean if self.undone else read.centre_out
        return replace(read, centre=read.centre + mean, centre_out=put_back)

    def _by_rule(self, x: Tensor) -> Normalised:
        if self.rule is NormalisationRule.LAYER_NORM:
            return self._layer_norm(x)
        if self.rule is NormalisationRule.CONSTANT_NORM:
            norm = x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5
            # An input of zeros stays zeros; the division would make it NaN.
            return self._scaled(x, norm.clamp_min(torch.finfo(x.dtype).tiny))
        if self.rule is NormalisationRule.EXPECTED_AVERAGE and self.factor != 1.0:
            return self._scaled(x, 1.0 / self.factor)
        return Normalised(x=x)

    def centred(self, directions: Tensor) -> Tensor:
        """Carry directions `(..., d_in)` on the normalised input to the input, at a scale of 1.

        Reading what has lost its mean is reading with a direction that has: the mean follows the input.
        """
        if self.rule is not NormalisationRule.LAYER_NORM and not self.without_mean:
            return directions
        return directions - directions.mean(dim=-1, keepdim=True)

    def _scaled(self, x: Tensor, scale: Tensor | float) -> Normalised:
        return Normalised(x=x / scale, scale=scale, scale_out=scale if self.undone else 1.0)

    def _layer_norm(self, x: Tensor) -> Normalised:
        centre = x.mean(dim=-1, keepdim=True)
        spread = (x - centre).std(dim=-1, keepdim=True)  # over d - 1, as SAELens takes it
        return Normalised(
            x=(x - centre) / (spread + _LAYER_NORM_EPS),
            centre=centre,
            scale=spread + _LAYER_NORM_EPS,
            centre_out=centre if self.undone else 0.0,
            scale_out=spread if self.undone else 1.0,
        )
