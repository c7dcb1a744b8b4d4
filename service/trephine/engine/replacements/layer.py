"""One contract for every kind of replacement layer, and it holds no state.

A layer reads one site and reconstructs one or more. Encoding answers with a `Code`: activations together
with what the input normalisation took out, so that decoding needs nothing that was remembered (SAELens
keeps it on the layer, and two threads then read each other's). Symbols as in SAELens:
`W_enc (d_in, d_sae)`, `W_dec (d_sae, d_out)`.

    x~  = (x - centre) / scale                    both go into the code
    pre = (x~ - b_dec if shifted) @ W_enc + b_enc
    f   = support(pre)
    y^  = centre_out + scale_out * (f @ W_dec + b_dec) [+ x @ W_skip.T]

SAEs undo their normalisation at the output; transcoders do not, since they write somewhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trephine.domain.replacements import ReplacementLayerInfo, SetFormat
from trephine.domain.sites import Site
from trephine.engine.models.indices import Indices
from trephine.engine.replacements.positions import TrainedTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """An encoded activation."""

    pre: Tensor
    """`(..., d_sae)`, pre-activations after `b_enc`, in units in which the support rule compares them."""
    activations: Tensor
    """`(..., d_sae)`, 0 outside the support."""
    active: Tensor
    """bool `(..., d_sae)`, the support. Not the same as `activations > 0`."""
    centre: Tensor | float = 0.0
    """`(..., 1)` or 0, taken out of the input by its normalisation."""
    scale: Tensor | float = 1.0
    """`(..., 1)` or a number: the input was divided by it."""
    centre_out: Tensor | float = 0.0
    """`(..., 1)` or 0, put back into the outputs."""
    scale_out: Tensor | float = 1.0
    """`(..., 1)` or a number: outputs are multiplied by it. 1 where the normalisation is not undone."""

    def denormalised(self, written: Tensor) -> Tensor:
        """Return what is written, `(..., d_out)`, in the site's units: unchanged where nothing is undone."""
        if isinstance(self.scale_out, Tensor) or self.scale_out != 1.0:
            written = written * self.scale_out
        if isinstance(self.centre_out, Tensor) or self.centre_out != 0.0:
            written = written + self.centre_out
        return written


class Support(Protocol):
    """Which features are active, and what their activations are."""

    def __call__(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """Return activations and the boolean support for pre-activations `(..., d_sae)`."""
        ...


class ReplacementLayer(Protocol):
    """A replacement layer with its weights resident. Stateless: safe to share between rows and threads."""

    @property
    def info(self) -> ReplacementLayerInfo:
        """What it is."""
        ...

    def encode(self, x: Tensor) -> Code:
        """Encode activations `(..., d_in)` of its input site, in float32 or wider."""
        ...

    def encode_features(self, x: Tensor, indices: Sequence[int]) -> Tensor:
        """Return activations `(..., len(indices))` of a few features.

        Cheap where the support rule looks at one feature at a time; TopK needs all pre-activations.
        """
        ...

    def decode(self, code: Code) -> Mapping[Site, Tensor]:
        """Reconstruct every output site `(..., d_out)` out of features and biases, without a skip path.

        A cross-layer transcoder's own share only: what it adds to each later site. Its `b_dec` belongs to
        its own layer's site.
        """
        ...

    def constants(self, code: Code) -> Mapping[Site, Tensor]:
        """Return what `decode` writes with no feature active `(..., d_out)`, where that is not zero."""
        ...

    def skip(self, x: Tensor, code: Code) -> Tensor | None:
        """Return what the skip path adds at the first output site `(..., d_out)`; None without one."""
        ...

    def skip_matrix(self) -> Tensor | None:
        """Return the skip path as one matrix `(d_out, d_in)` on the site's activation; None without one."""
        ...

    def reconstruct(self, x: Tensor) -> Mapping[Site, Tensor]:
        """Encode, decode and skip in one."""
        ...

    def encoders(self, indices: Indices) -> Tensor:
        """Return encoder directions `(len(indices), d_in)` on the site's activation, float32 or wider.

        At a scale of 1 (divide by the code's `scale`): pre-activations move along them where the scale is
        held. A mean that the normalisation takes out follows the input.
        """
        ...

    def decoders(self, indices: Indices, site: Site) -> Tensor:
        """Return decoder directions `(len(indices), d_out)` at an output site, float32 or wider.

        Per unit of activation, before denormalisation (multiply by the code's `scale_out`).
        """
        ...

    def decoder_norms(self) -> Tensor:
        """Return the L2 norm `(d_sae,)` of each feature's decoder over all its output sites."""
        ...

    def thresholds(self) -> Tensor | None:
        """Return `(d_sae,)`, the smallest active pre-activation; None where the rule has none of its own."""
        ...


class LayerReader(Protocol):
    """Knows one layer on disk: what it is, without reading weights, and how to read them."""

    @property
    def info(self) -> ReplacementLayerInfo:
        """What it is; shapes are read from file headers."""
        ...

    @property
    def pre_gain(self) -> bool:
        """True if the files settle that the input is meant before the norm's gain; fold the gain in."""
        ...

    def read(self, device: torch.device | str = "cpu") -> ReplacementLayer:
        """Read the weights.

        Raises:
            BrokenReplacementError: If the file is cut short or has a wrong width or NaN.
        """
        ...


class ReadSet(Protocol):
    """A set on disk, as a format's reader sees it."""

    @property
    def format(self) -> SetFormat:
        """How it lies on disk; never `auto`."""
        ...

    @property
    def layers(self) -> Sequence[LayerReader]:
        """One per covered layer, ascending."""
        ...

    @property
    def prepends_bos(self) -> bool | None:
        """Whether contexts begin with BOS by the set's own word; None if it does not say."""
        ...

    @property
    def trained_on(self) -> TrainedTokens:
        """Which tokens it was trained on by its own word."""
        ...

    @property
    def model_name(self) -> str | None:
        """The model that the set was trained on by its own word."""
        ...

    @property
    def ambiguous_input(self) -> bool:
        """True if the files do not settle whether an MLP's input is meant before or after the gain."""
        ...
