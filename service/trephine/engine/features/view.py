"""ViewDecoder: what a feature writes, and which tokens it reads, from weights alone."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import torch
from torch import Tensor

from trephine.domain.features import DecoderView, ViewDecoder
from trephine.domain.replacements import LayerKind, ReplacementLayerInfo
from trephine.domain.sites import FeatureRef, Site, SiteKind
from trephine.engine.features.deembedding import feature_reads
from trephine.engine.models.architecture import Architecture
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.lens import Ends, extreme_tokens, lens_logits
from trephine.engine.models.session import Handler, Session
from trephine.engine.replacements.layer import ReplacementLayer
from trephine.engine.replacements.sets import opened, require_feature

_ROWS = 4096
"""Decoders that are compared per quantum."""
_STREAM = frozenset(
    {
        SiteKind.EMBED,
        SiteKind.RESID_PRE,
        SiteKind.RESID_MID,
        SiteKind.RESID_POST,
        SiteKind.MLP_OUT,
        SiteKind.ATTN_OUT,
    }
)
"""Sites whose values are, or are added to, the residual stream."""


def view_decoder(session: Session, command: ViewDecoder) -> Generator[None, None, DecoderView]:
    """Read a feature's decoder: its tokens by logit lens, and the features that write nearly the same.

    Raises:
        ReplacementNotFoundError: If its set is not loaded.
        LayerOutOfRangeError: If its layer does not exist.
        FeatureOutOfRangeError: If its index does not.
    """
    hosted = session.require_model()
    info = require_feature(hosted, command.feature, field="feature")
    yield
    cosines = []
    for start in range(0, info.d_sae, _ROWS):
        cosines.append(_cosines(hosted, command.feature, info, range(start, min(start + _ROWS, info.d_sae))))
        yield
    with opened(hosted, command.feature.replacement, (info.layer,)) as resident, torch.inference_mode():
        layer = resident[info.layer]
        direction = _written(hosted.architecture, layer, command.feature.index)
        promotes, suppresses = _extremes(hosted, direction, command.tokens)
        reads = feature_reads(hosted.architecture, layer, command.feature.index) if command.tokens else None
        excited, inhibited = (
            ((), ()) if reads is None else extreme_tokens(hosted, reads[None], command.tokens)[0]
        )
        thresholds = layer.thresholds()
        return DecoderView(
            feature=command.feature,
            promotes=promotes,
            suppresses=suppresses,
            neighbours=_neighbours(command.feature, torch.cat(cosines), command.neighbours),
            decoder_norm=float(layer.decoder_norms()[command.feature.index]),
            threshold=None if thresholds is None else float(thresholds[command.feature.index]),
            excited_by=excited,
            inhibited_by=inhibited,
            caveats=tuple(_caveats(info, direction is not None)),
        )


def _cosines(hosted: HostedModel, feature: FeatureRef, info: ReplacementLayerInfo, part: range) -> Tensor:
    """Compare with some decoders of the layer, over all sites that it writes; float32 or wider."""
    with opened(hosted, feature.replacement, (info.layer,)) as resident, torch.inference_mode():
        layer = resident[info.layer]
        norms = layer.decoder_norms()
        dots = torch.zeros(
            len(part), dtype=torch.promote_types(norms.dtype, torch.float32), device=norms.device
        )
        for site in info.sites_out:
            own = layer.decoders((feature.index,), site)[0]
            dots += layer.decoders(part, site) @ own
        sizes = norms[part.start : part.stop] * norms[feature.index]
        return (dots / sizes.clamp_min(torch.finfo(dots.dtype).tiny)).cpu()


def _neighbours(feature: FeatureRef, cosines: Tensor, count: int) -> tuple[tuple[FeatureRef, float], ...]:
    cosines[feature.index] = -2.0  # below every cosine: a feature is no neighbour of itself
    best = cosines.topk(min(count, len(cosines) - 1))
    return tuple(
        (FeatureRef(replacement=feature.replacement, layer=feature.layer, index=index), cosine)
        for index, cosine in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    )


def _written(architecture: Architecture, layer: ReplacementLayer, index: int) -> Tensor | None:
    """Return what one unit of activation adds to the residual stream `(d_model,)`, over all sites.

    None where a site is no part of the stream, so that a logit lens would mean nothing.
    """
    parts = [_in_stream(architecture, layer, index, site) for site in layer.info.sites_out]
    found = [part for part in parts if part is not None]
    return torch.stack(found).sum(0) if len(found) == len(parts) else None


def _in_stream(architecture: Architecture, layer: ReplacementLayer, index: int, site: Site) -> Tensor | None:
    decoder = layer.decoders((index,), site)[0]
    if site.kind is SiteKind.ATTN_Z:
        W_O = architecture.blocks[site.layer].attention.W_O.flatten(1)
        return W_O.to(decoder.dtype) @ decoder
    return decoder if site.kind in _STREAM else None


def _extremes(hosted: HostedModel, direction: Tensor | None, count: int) -> Ends:
    if direction is None or not count:
        return (), ()
    return extreme_tokens(hosted, lens_logits(hosted.architecture, direction[None]), count)[0]


def _caveats(info: ReplacementLayerInfo, in_stream: bool) -> Iterator[str]:
    if not in_stream:
        kinds = ", ".join(sorted({site.kind.value for site in info.sites_out}))
        yield f"It writes {kinds}, which is no part of the residual stream: there is no logit lens of it."
    elif info.kind is LayerKind.CROSS_LAYER_TRANSCODER:
        yield "The logit lens adds up what it writes into all layers."
    if info.kind is LayerKind.NEURONS:
        yield "A neuron's activation may be negative: promoted and suppressed tokens then swap roles."


HANDLERS: dict[type, Handler] = {ViewDecoder: view_decoder}
"""Commands of this module."""
