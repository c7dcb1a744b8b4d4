"""The encoding half of a replacement layer: from an activation to features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trephine.engine.models.indices import Indices, chosen
from trephine.engine.models.products import product
from trephine.engine.replacements.layer import Code
from trephine.engine.replacements.normalisation import Normalisation, Normalised
from trephine.engine.replacements.precision import wide
from trephine.engine.replacements.support import SupportOf


@dataclass(frozen=True, slots=True, kw_only=True)
class InputGain:
    """A norm's gain and bias that the site carries and the dictionary was trained without."""

    gain: Tensor
    """`(d_in,)`, none of it 0."""
    bias: Tensor | None

    def undo(self, x: Tensor) -> Tensor:
        """Return the norm's output before gain and bias."""
        centred = x if self.bias is None else x - self.bias.to(x.dtype)
        return centred / self.gain.to(x.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """Encoder weights in the dtype they are stored in; arithmetic is in float32 or wider."""

    W_enc: Tensor
    """`(d_in, d_sae)`, perhaps a view of the transposed file."""
    support: SupportOf
    b_enc: Tensor | None = None
    """`(d_sae,)`, added after `row_gain`."""
    row_gain: Tensor | None = None
    """`(d_sae,)`, factor of every feature's encoder: decoder norms (rescaled TopK), exp(r_mag) (gated)."""
    shift: Tensor | None = None
    """`(d_in,)`, subtracted from the normalised input (`apply_b_dec_to_input`)."""
    normalisation: Normalisation = field(default_factory=Normalisation)
    input_gain: InputGain | None = None

    def widened(self, x: Tensor) -> Tensor:
        """Return the site's activation as the dictionary's training saw it, in the dtype of arithmetic."""
        dtype = torch.promote_types(torch.promote_types(x.dtype, self.W_enc.dtype), torch.float32)
        x = x.to(dtype)
        return x if self.input_gain is None else self.input_gain.undo(x)

    def encode(self, x: Tensor) -> Code:
        """Encode activations `(..., d_in)`."""
        read = self.normalisation(self.widened(x))
        pre = self._pre(read, slice(None))
        activations, active = self.support(pre)
        return Code(
            pre=pre,
            activations=activations,
            active=active,
            centre=read.centre,
            scale=read.scale,
            centre_out=read.centre_out,
            scale_out=read.scale_out,
        )

    def features(self, x: Tensor, indices: Sequence[int]) -> Tensor:
        """Return activations `(..., len(indices))`."""
        own = list(indices)
        if not self.support.pointwise:
            return self.encode(x).activations[..., own]
        pre = self._pre(self.normalisation(self.widened(x)), own)
        return self.support.at(own)(pre)[0]

    def directions(self, indices: Indices) -> Tensor:
        """Return encoder directions `(len(indices), d_in)` on the site's activation, at a scale of 1."""
        rows = wide(self.W_enc[:, chosen(indices)]).T
        if self.row_gain is not None:
            rows = rows * wide(self.row_gain[chosen(indices)])[:, None]
        rows = self.normalisation.centred(rows)
        return rows if self.input_gain is None else rows / wide(self.input_gain.gain)

    def skipped(self, x: Tensor, W_skip: Tensor) -> Tensor:
        """Return what a skip path `(d_out, d_in)` adds; it reads the input without the normalisation."""
        read = self.widened(x)
        return product(read, W_skip.T.to(read.dtype))

    def skip_matrix(self, W_skip: Tensor) -> Tensor:
        """Return a skip path as one matrix on the site's activation, through an undone input gain."""
        matrix = wide(W_skip)
        return matrix if self.input_gain is None else matrix / wide(self.input_gain.gain)

    def thresholds(self) -> Tensor | None:
        """Return `(d_sae,)`, what pre-activations must exceed; None under TopK."""
        found = self.support.thresholds(self.W_enc.shape[1])
        return None if found is None else found.to(self.W_enc.device)

    def _pre(self, read: Normalised, own: slice | list[int]) -> Tensor:
        x = read.x if self.shift is None else read.x - self.shift.to(read.x.dtype)
        pre = product(x, self.W_enc[:, own].to(x.dtype))
        if self.row_gain is not None:
            pre = pre * self.row_gain[own].to(x.dtype)
        return pre if self.b_enc is None else pre + self.b_enc[own].to(x.dtype)
