"""Sets built on the spot for a hosted model: random encoders, decoders by least squares on a text.

Nothing is trained: they reconstruct as poor dictionaries do, error terms are large, and laws must hold.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Sets without a folder belong to the tests; here they get weights that fit a model.
from tests.resident_sets import reside  # noqa: TID251
from trephine.domain.replacements import LayerKind, ReplacementLayerInfo, SupportRule
from trephine.domain.sites import Site, SiteKind
from trephine.engine.admission.splice import run_context
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.crosslayer import CrossLayerDictionary
from trephine.engine.replacements.dictionary import DictionaryLayer
from trephine.engine.replacements.encoder import Encoder
from trephine.engine.replacements.layer import ReplacementLayer
from trephine.engine.replacements.support import Threshold

TRANSCODER, SAE, CLT = (
    LayerKind.TRANSCODER,
    LayerKind.SAE,
    LayerKind.CROSS_LAYER_TRANSCODER,
)
_RIDGE = 1e-3
"""Of a feature's mean square; keeps decoders finite on short texts."""


def build_set(
    hosted: HostedModel,
    kind: LayerKind,
    layers: Sequence[int],
    ids: Sequence[int],
    *,
    d_sae: int = 256,
    l0: int = 16,
    seed: int = 0,
    sae_site: SiteKind = SiteKind.RESID_POST,
    name: str = "",
) -> str:
    """Fit a set to a text and put it beside the model; return its name.

    Args:
        hosted: The model.
        kind: `TRANSCODER`, `SAE` or `CLT`.
        layers: Those that are covered; a CLT's write all of these from their own on.
        ids: The text that thresholds and decoders are fitted on; position 0 is left out.
        d_sae: Features per layer.
        l0: Features that are active per token, on average.
        seed: Of the encoders.
        sae_site: What SAEs reconstruct.
        name: Of the set; empty: its kind.
    """
    read, write = (sae_site,) * 2 if kind is SAE else (SiteKind.MLP_IN, SiteKind.MLP_OUT)
    sites = {Site(kind=k, layer=n) for n in layers for k in (read, write)}
    with torch.inference_mode():
        _, values = run_context(
            hosted, ids, {}, reads=sorted(sites, key=lambda site: (site.layer, site.kind))
        )
        rest = {site: x[1:].float() for site, x in values.items()}
        built: list[ReplacementLayer] = []
        for n in layers:
            source = Site(kind=read, layer=n)
            encoder = _encoder(rest[source], d_sae, l0, seed + n)
            later = [x for x in layers if x >= n] if kind is CLT else [n]
            targets = tuple(Site(kind=write, layer=x) for x in later)
            codes = encoder.encode(rest[source]).activations
            decoders = []
            for site in targets:
                decoders.append(_least_squares(codes, rest[site]))
                if kind is CLT:  # the next layers write what this one left
                    rest[site] = rest[site] - codes @ decoders[-1]
            built.append(_layer(kind, source, targets, encoder, decoders))
    return reside(hosted, built, name=name or kind.value)


def _encoder(x: Tensor, d_sae: int, l0: int, seed: int) -> Encoder:
    """Random directions; thresholds let each feature fire on the same share of tokens."""
    draws = torch.Generator().manual_seed(seed)
    directions = torch.randn(x.shape[1], d_sae, generator=draws)
    directions = directions / (x.std() * directions.norm(dim=0))
    threshold = (x @ directions).quantile(1 - l0 / d_sae, dim=0).clamp_min(1e-3)
    return Encoder(W_enc=directions, b_enc=None, support=Threshold(threshold=threshold))


def _least_squares(codes: Tensor, x: Tensor) -> Tensor:
    """`(d_sae, width)`, ridge regression of activations on features."""
    gram = (codes.T @ codes).double()
    gram.diagonal().add_(_RIDGE * gram.diagonal().mean())
    return torch.linalg.solve(gram, (codes.T @ x).double()).float()


def _layer(
    kind: LayerKind, source: Site, targets: tuple[Site, ...], encoder: Encoder, decoders: Sequence[Tensor]
) -> ReplacementLayer:
    width = decoders[0].shape[1]
    info = ReplacementLayerInfo(
        layer=source.layer,
        kind=kind,
        support=SupportRule.JUMPRELU,
        site_in=source,
        sites_out=targets,
        d_in=encoder.W_enc.shape[0],
        d_out=width,
        d_sae=encoder.W_enc.shape[1],
        normalisation=encoder.normalisation.rule.value,
        has_skip=False,
        claimed_l0=None,
        memory_bytes=0,
        content_hash=f"built-{source.layer}",
    )
    b_dec = torch.zeros(width)
    if kind is CLT:
        return CrossLayerDictionary(
            info=info, encoder=encoder, W_dec=torch.stack(list(decoders), 1), b_dec=b_dec
        )
    return DictionaryLayer(info=info, encoder=encoder, W_dec=decoders[0], b_dec=b_dec)
