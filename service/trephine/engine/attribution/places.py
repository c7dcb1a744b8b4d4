"""Where a sweep meets sites on its way down: one number per site, larger is nearer to the logits.

Block l has places 5 l to 5 l + 4: what attention reads, what it adds, the stream between the branches, what
the MLP reads, the stream after the block. The stream before block l is the stream after block l - 1, and the
embedding, which is -1, before block 0. A dictionary reconstructs the stream at that place, and attention
reads what it writes, above it: hence a place of its own.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor

from trephine.domain.errors import UnsupportedOptionError
from trephine.domain.replacements import LayerKind, ReplacementLayerInfo
from trephine.domain.sites import Site, SiteKind
from trephine.engine.attribution.operators import FrozenOperators

PER_BLOCK: Final = 5
BEFORE, ATTENTION, MIDDLE, MLP, AFTER = range(PER_BLOCK)
EMBEDDING: Final = -1

_STREAM = {SiteKind.RESID_PRE, SiteKind.RESID_MID, SiteKind.RESID_POST, SiteKind.EMBED}


def place_of(site: Site) -> int:
    """Return the place at which a sweep passes a site.

    Raises:
        UnsupportedOptionError: If no law holds for attribution at such a site.
    """
    first = PER_BLOCK * site.layer
    places = {
        SiteKind.RESID_POST: first + AFTER,
        SiteKind.MLP_OUT: first + AFTER,
        SiteKind.MLP_IN: first + MLP,
        SiteKind.RESID_MID: first + MIDDLE,
        SiteKind.ATTN_OUT: first + ATTENTION,
        SiteKind.RESID_PRE: first - 1,
        SiteKind.EMBED: EMBEDDING,
    }
    if site.kind not in places:
        raise UnsupportedOptionError(
            f"no attribution law holds for dictionaries at {site.kind.value}; it works for transcoders from "
            "mlp_in to mlp_out, cross-layer transcoders, and SAEs on the stream, attn_out or mlp_out",
            field="replacement",
        )
    return places[site.kind]


def first_block(cut: int, within: int) -> int:
    """Return the first block of which a place, `BEFORE` to `AFTER`, lies above a cut of the stream."""
    return max(0, -((within - cut - 1) // PER_BLOCK))


def is_cut(info: ReplacementLayerInfo) -> bool:
    """True for a dictionary on the residual stream: everything above reads it, so adjoints end there."""
    return info.site_in.kind in _STREAM


def check_attributable(info: ReplacementLayerInfo, *, parallel: bool) -> None:
    """Refuse replacement layers for which no attribution law holds.

    Raises:
        UnsupportedOptionError: Naming layer and site.
    """
    source, outputs = info.site_in.kind, {site.kind for site in info.sites_out}
    reads_mlp = source is SiteKind.MLP_IN and outputs == {SiteKind.MLP_OUT}
    on_stream = info.kind is LayerKind.SAE and source in _STREAM
    on_attention = info.kind is LayerKind.SAE and source is SiteKind.ATTN_OUT and not parallel
    on_mlp = info.kind is LayerKind.SAE and source is SiteKind.MLP_OUT
    if not (reads_mlp or on_stream or on_attention or on_mlp):
        raise UnsupportedOptionError(
            f"layer {info.layer} of the set goes from {source.value} to "
            f"{', '.join(sorted(kind.value for kind in outputs))}"
            + (" of parallel blocks" if parallel and source is SiteKind.ATTN_OUT else "")
            + ": no attribution law holds for it. Attribution works for transcoders from mlp_in to mlp_out, "
            "cross-layer transcoders, and SAEs on the residual stream, attn_out or mlp_out",
            field="replacement",
            layer=info.layer,
        )


def clean_value(operators: FrozenOperators, site: Site) -> Tensor:
    """Return the clean activation `(n_pos, d_model)` at a site that attribution knows."""
    layer = operators.layers[site.layer]
    match site.kind:
        case SiteKind.MLP_IN:
            return layer.mlp_norm.clean
        case SiteKind.MLP_OUT:
            return layer.mlp_out
        case SiteKind.ATTN_OUT:
            return layer.resid_mid - layer.resid_pre
        case SiteKind.RESID_MID:
            return layer.resid_mid
        case SiteKind.RESID_PRE | SiteKind.EMBED:
            return layer.resid_pre
        case SiteKind.RESID_POST:
            last = site.layer == len(operators.layers) - 1
            return operators.stream if last else operators.layers[site.layer + 1].resid_pre
        case _:
            raise ValueError(f"attribution knows no {site.kind.value}")
