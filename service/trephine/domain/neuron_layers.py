"""A model's own neurons as layers of a set, and where they stand beside other sets."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from trephine.domain.replacements import LayerKind, ReplacementLayerInfo, SupportRule
from trephine.domain.sites import Site, SiteKind


def neurons_of(layer: int, *, d_model: int, d_mlp: int) -> ReplacementLayerInfo:
    """Describe a layer's neurons: exact, untrained, and the weights are the model's own."""
    return ReplacementLayerInfo(
        layer=layer,
        kind=LayerKind.NEURONS,
        support=SupportRule.DENSE,
        site_in=Site(kind=SiteKind.MLP_IN, layer=layer),
        sites_out=(Site(kind=SiteKind.MLP_OUT, layer=layer),),
        d_in=d_model,
        d_out=d_model,
        d_sae=d_mlp,
        normalisation="none",
        has_skip=False,
        claimed_l0=None,
        memory_bytes=0,
        content_hash="",
    )


def free_mlps(
    spanned: Iterable[ReplacementLayerInfo], n_layers: int, only: Collection[int] | None = None
) -> list[int]:
    """List the layers whose MLP no layer of a set reconstructs, ascending.

    Args:
        spanned: Layers of sets.
        n_layers: Of the model.
        only: Look at these layers; None: at all.
    """
    written = {site for one in spanned for site in one.sites_out}
    looked_at = range(n_layers) if only is None else sorted(set(only))
    return [n for n in looked_at if Site(kind=SiteKind.MLP_OUT, layer=n) not in written]
