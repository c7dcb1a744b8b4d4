"""SAEs, transcoders and skip transcoders: one input site, one output site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trephine.domain.replacements import ReplacementLayerInfo
from trephine.domain.sites import Site
from trephine.engine.models.indices import Indices, chosen
from trephine.engine.models.products import product
from trephine.engine.replacements.encoder import Encoder, InputGain
from trephine.engine.replacements.layer import Code
from trephine.engine.replacements.precision import wide


@dataclass(frozen=True, slots=True, kw_only=True)
class DictionaryLayer:
    """A `ReplacementLayer` with one output site. Weights stay in the dtype that they are stored in."""

    info: ReplacementLayerInfo
    encoder: Encoder
    W_dec: Tensor
    """`(d_sae, d_out)`."""
    b_dec: Tensor | None
    """`(d_out,)`."""
    row_gain: Tensor | None = None
    """`(d_sae,)`, factor of every feature's decoder: 1 / norm where activations carry the norm (TopK)."""
    W_skip: Tensor | None = None
    """`(d_out, d_in)`."""

    def encode(self, x: Tensor) -> Code:
        """Encode activations `(..., d_in)` of the input site."""
        return self.encoder.encode(x)

    def encode_features(self, x: Tensor, indices: Sequence[int]) -> Tensor:
        """Return activations `(..., len(indices))` of a few features."""
        return self.encoder.features(x, indices)

    def decode(self, code: Code) -> Mapping[Site, Tensor]:
        """Reconstruct the output site out of features and bias."""
        features = code.activations
        if self.row_gain is not None:
            features = features * self.row_gain.to(features.dtype)
        written = product(features, self.W_dec.to(features.dtype))
        if self.b_dec is not None:
            written = written + self.b_dec.to(features.dtype)
        return {self.info.sites_out[0]: code.denormalised(written)}

    def constants(self, code: Code) -> Mapping[Site, Tensor]:
        """Return the bias, and what input normalisation puts back."""
        features = code.activations
        bias = (
            features.new_zeros(self.W_dec.shape[1]) if self.b_dec is None else self.b_dec.to(features.dtype)
        )
        written = bias.expand(*features.shape[:-1], -1)
        return {self.info.sites_out[0]: code.denormalised(written)}

    def skip(self, x: Tensor, code: Code) -> Tensor | None:
        """Return what the skip path adds; it reads the input without the normalisation."""
        return None if self.W_skip is None else self.encoder.skipped(x, self.W_skip)

    def skip_matrix(self) -> Tensor | None:
        """Return the skip path on the site's activation, through an undone input gain."""
        return None if self.W_skip is None else self.encoder.skip_matrix(self.W_skip)

    def reconstruct(self, x: Tensor) -> Mapping[Site, Tensor]:
        """Encode, decode, and add the skip path."""
        code = self.encode(x)
        written, skipped = self.decode(code), self.skip(x, code)
        if skipped is None:
            return written
        site = self.info.sites_out[0]
        return {site: written[site] + skipped}

    def encoders(self, indices: Indices) -> Tensor:
        """Return encoder directions `(len(indices), d_in)`."""
        return self.encoder.directions(indices)

    def decoders(self, indices: Indices, site: Site) -> Tensor:
        """Return decoder directions `(len(indices), d_out)` per unit of activation."""
        _require_written(self.info, site)
        rows = wide(self.W_dec[chosen(indices)])
        return rows if self.row_gain is None else rows * wide(self.row_gain[chosen(indices)])[:, None]

    def decoder_norms(self) -> Tensor:
        """Return the L2 norm of every decoder direction."""
        norms = torch.linalg.vector_norm(self.W_dec, dim=1, dtype=wide(self.W_dec[:0]).dtype)
        return norms if self.row_gain is None else norms * wide(self.row_gain).abs()

    def thresholds(self) -> Tensor | None:
        """Return `(d_sae,)`, what a pre-activation must exceed; None under TopK."""
        return self.encoder.thresholds()

    def with_input_gain(self, gain: InputGain) -> DictionaryLayer:
        """Return the same dictionary, read on a site that carries a norm's gain and bias."""
        return replace(self, encoder=replace(self.encoder, input_gain=gain))


def _require_written(info: ReplacementLayerInfo, site: Site) -> None:
    if site not in info.sites_out:
        raise ValueError(f"the replacement layer of layer {info.layer} does not write {site}")
