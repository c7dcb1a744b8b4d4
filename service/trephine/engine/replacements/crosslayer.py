"""Cross-layer transcoders: features of one layer that write that layer and later ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trephine.domain.replacements import ReplacementLayerInfo
from trephine.domain.sites import Site
from trephine.engine.models.indices import Indices, chosen
from trephine.engine.replacements.encoder import Encoder, InputGain
from trephine.engine.replacements.layer import Code
from trephine.engine.replacements.precision import wide


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossLayerDictionary:
    """One layer of a cross-layer transcoder. Its decoders are kept apart: their sum writes nowhere."""

    info: ReplacementLayerInfo
    encoder: Encoder
    W_dec: Tensor
    """`(d_sae, n_targets, d_out)`; target t is `info.sites_out[t]`, target 0 its own layer."""
    b_dec: Tensor | None
    """`(d_out,)`, of its own layer's site alone."""
    W_skip: Tensor | None = None
    """`(d_out, d_in)`, at its own layer's site."""

    def encode(self, x: Tensor) -> Code:
        """Encode activations `(..., d_in)` of the input site."""
        return self.encoder.encode(x)

    def encode_features(self, x: Tensor, indices: Sequence[int]) -> Tensor:
        """Return activations `(..., len(indices))` of a few features."""
        return self.encoder.features(x, indices)

    def decode(self, code: Code) -> Mapping[Site, Tensor]:
        """Return what this layer's features add to each site that they write."""
        features = code.activations
        # One target at a time: the widened copy of all decoders would be several times the file.
        written = {
            site: features @ self.W_dec[:, target].to(features.dtype)
            for target, site in enumerate(self.info.sites_out)
        }
        if self.b_dec is not None:
            own = self.info.sites_out[0]
            written[own] = written[own] + self.b_dec.to(features.dtype)
        return written

    def constants(self, code: Code) -> Mapping[Site, Tensor]:
        """Return the bias of its own layer's site."""
        if self.b_dec is None:
            return {}
        own, features = self.info.sites_out[0], code.activations
        return {own: self.b_dec.to(features.dtype).expand(*features.shape[:-1], -1)}

    def skip(self, x: Tensor, code: Code) -> Tensor | None:
        """Return what the skip path adds at its own layer's site."""
        return None if self.W_skip is None else self.encoder.skipped(x, self.W_skip)

    def skip_matrix(self) -> Tensor | None:
        """Return the skip path on the site's activation, through an undone input gain."""
        return None if self.W_skip is None else self.encoder.skip_matrix(self.W_skip)

    def reconstruct(self, x: Tensor) -> Mapping[Site, Tensor]:
        """Encode, decode, and add the skip path at its own layer's site."""
        code = self.encode(x)
        written, skipped = dict(self.decode(code)), self.skip(x, code)
        if skipped is not None:
            own = self.info.sites_out[0]
            written[own] = written[own] + skipped
        return written

    def encoders(self, indices: Indices) -> Tensor:
        """Return encoder directions `(len(indices), d_in)`."""
        return self.encoder.directions(indices)

    def decoders(self, indices: Indices, site: Site) -> Tensor:
        """Return decoder directions `(len(indices), d_out)` at one of the sites."""
        if site not in self.info.sites_out:
            raise ValueError(f"the replacement layer of layer {self.info.layer} does not write {site}")
        return wide(self.W_dec[chosen(indices), self.info.sites_out.index(site)])

    def decoder_norms(self) -> Tensor:
        """Return the L2 norm of every feature's decoders, over all the sites that it writes."""
        dtype = wide(self.W_dec[:0]).dtype
        per_target = [
            torch.linalg.vector_norm(self.W_dec[:, t], dim=1, dtype=dtype) for t in range(self.W_dec.shape[1])
        ]
        return torch.stack(per_target).norm(dim=0)

    def thresholds(self) -> Tensor | None:
        """Return `(d_sae,)`, what a pre-activation must exceed; None under TopK."""
        return self.encoder.thresholds()

    def with_input_gain(self, gain: InputGain) -> CrossLayerDictionary:
        """Return the same dictionary, read on a site that carries a norm's gain and bias."""
        return replace(self, encoder=replace(self.encoder, input_gain=gain))
