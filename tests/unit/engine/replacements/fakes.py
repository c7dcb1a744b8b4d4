"""Readers of layers that lie in memory, for the pager and for admission: every read is counted."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from trephine.domain.replacements import LayerKind, ReplacementLayerInfo, SetFormat, SupportRule
from trephine.domain.sites import Site, SiteKind
from trephine.engine.replacements.layer import Code


def layer_info(layer: int, **changes: Any) -> ReplacementLayerInfo:
    """Describe a small transcoder layer of 32 inputs."""
    given = ReplacementLayerInfo(
        layer=layer,
        kind=LayerKind.TRANSCODER,
        support=SupportRule.JUMPRELU,
        site_in=Site(kind=SiteKind.MLP_IN, layer=layer),
        sites_out=(Site(kind=SiteKind.MLP_OUT, layer=layer),),
        d_in=32,
        d_out=32,
        d_sae=64,
        normalisation="none",
        has_skip=False,
        claimed_l0=None,
        memory_bytes=1000,
        content_hash=f"hash-{layer}",
    )
    return replace(given, **changes)


@dataclass(kw_only=True)
class FakeLayer:
    """A linear-threshold layer: `f = pre * (pre > threshold)`, one decoder per output site."""

    info: ReplacementLayerInfo
    W_enc: Tensor
    b_enc: Tensor
    threshold: Tensor
    W_dec: dict[Site, Tensor]
    b_dec: dict[Site, Tensor]
    W_skip: Tensor | None = None

    def encode(self, x: Tensor) -> Code:
        pre = x.to(self.W_enc.dtype) @ self.W_enc + self.b_enc
        active = pre > self.threshold
        return Code(pre=pre, activations=pre * active, active=active)

    def encode_features(self, x, indices):
        return self.encode(x).activations[..., list(indices)]

    def decode(self, code: Code):
        return {site: code.activations @ W + self.b_dec[site] for site, W in self.W_dec.items()}

    def skip(self, x: Tensor, code: Code):
        return None if self.W_skip is None else x.to(self.W_skip.dtype) @ self.W_skip.T

    def skip_matrix(self):
        return self.W_skip

    def reconstruct(self, x: Tensor):
        code = self.encode(x)
        decoded, skipped = dict(self.decode(code)), self.skip(x, code)
        if skipped is not None:
            decoded[self.info.sites_out[0]] = decoded[self.info.sites_out[0]] + skipped
        return decoded

    def encoders(self, indices):
        return self.W_enc[:, list(indices)].T

    def decoders(self, indices, site):
        return self.W_dec[site][list(indices)]

    def decoder_norms(self):
        return torch.stack([W.norm(dim=-1) for W in self.W_dec.values()]).norm(dim=0)

    def thresholds(self):
        return self.threshold


def random_layer(info: ReplacementLayerInfo, *, seed: int = 0, dtype=torch.float32) -> FakeLayer:
    """Draw a layer's weights; about a third of its features are active on inputs of order one."""
    generator = torch.Generator().manual_seed(seed * 1000 + info.layer)

    def draw(*shape: int, scale: float):
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)

    return FakeLayer(
        info=info,
        W_enc=draw(info.d_in, info.d_sae, scale=info.d_in**-0.5),
        b_enc=draw(info.d_sae, scale=0.1),
        threshold=draw(info.d_sae, scale=0.1).abs() + 0.3,
        W_dec={site: draw(info.d_sae, info.d_out, scale=0.1) for site in info.sites_out},
        b_dec={site: draw(info.d_out, scale=0.1) for site in info.sites_out},
        W_skip=draw(info.d_out, info.d_in, scale=0.1) if info.has_skip else None,
    )


@dataclass
class FakeReader:
    """Counts how often it is read."""

    layer: FakeLayer
    reads: int = 0
    pre_gain: bool = False

    @property
    def info(self) -> ReplacementLayerInfo:
        return self.layer.info

    def read(self, device="cpu") -> FakeLayer:
        self.reads += 1
        return self.layer


@dataclass
class FakeSet:
    """A `ReadSet` in memory."""

    layers: list[FakeReader] = field(default_factory=list)
    format: SetFormat = SetFormat.SAELENS
    prepends_bos: bool | None = False
    model_name: str | None = None
    ambiguous_input: bool = False


def fake_set(layers, **changes: Any) -> FakeSet:
    """Wrap layers; every content hash is that of the weights."""
    for layer in layers:
        digest = hashlib.sha256(repr(layer.W_enc.tolist()).encode()).hexdigest()
        layer.info = replace(layer.info, content_hash=digest)
    return FakeSet(layers=[FakeReader(layer) for layer in layers], **changes)
