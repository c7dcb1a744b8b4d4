"""Where weights carry what an edit does at a site: the module that reads or writes there.

A residual site is a sum of what modules have written. A constant goes into the last of them. A component
along a direction does so only where it is known what the earlier ones have left of it: nothing, or a
constant. A forward pass decides that, and not the order in which an edit names its interventions: what is
done to an MLP's output comes before what is done to the sum behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from trephine.domain.sites import Site, SiteKind
from trephine.engine.models.architecture import Norm
from trephine.engine.models.hosted import HostedModel
from trephine.engine.weights.expressible import SERVED, refusal
from trephine.engine.weights.linear import MapOp, When, composed, when

_RESIDUAL = (SiteKind.EMBED, SiteKind.RESID_PRE, SiteKind.RESID_MID, SiteKind.RESID_POST)
_Written = Mapping[Site, Sequence[tuple[When, MapOp | None]]]
"""What is done to each writer's output; None: something that no affine map is."""


def placed(
    hosted: HostedModel, maps: Sequence[MapOp], features: Sequence[tuple[Site, int]]
) -> list[tuple[MapOp, str]]:
    """Move every map to the module that reads or writes there, or say why it can only be fitted.

    Args:
        hosted: The model.
        maps: In any order.
        features: Where features of sets write, each with its order there.

    Returns:
        The maps in the order of a forward pass.
    """
    written: dict[Site, list[tuple[When, MapOp | None]]] = {}
    for site, number in features:
        written.setdefault(writer_of(hosted, site), []).append((when(site, number), None))
    found: list[tuple[MapOp, str]] = []
    for op in sorted(maps, key=lambda op: op.when):
        moved, why = _placed(hosted, op, written)
        written.setdefault(_writes(hosted, op), []).append((op.when, None if why else moved))
        found.append((moved, why))
    return found


def _writes(hosted: HostedModel, op: MapOp) -> Site:
    """Return the output in which an operation is seen."""
    if op.origin.kind is SiteKind.ATTN_Z:
        return Site(kind=SiteKind.ATTN_OUT, layer=op.origin.layer)
    return writer_of(hosted, op.origin)


def _placed(hosted: HostedModel, op: MapOp, written: _Written) -> tuple[MapOp, str]:
    place = writer_of(hosted, op.site)
    if not op.is_affine:
        _require_bounded_writer(hosted, op, place)
        return op, "a bound is no linear map of what its module reads"
    if post_normed(hosted, place):
        if op.unit is None:  # the norm's own gain scales all of what it answers
            return replace(op, site=place), ""
        return op, "a norm behind the module rescales what its weights write"
    if op.site.kind not in _RESIDUAL or place.kind is SiteKind.EMBED or op.is_shift or op.unit is None:
        return replace(op, site=place), ""
    before = _sum_before(hosted, place, op.unit, written)
    if before is not None:
        # f (before + w) + s of the sum is f w + s + (f - 1) before of the last summand.
        shift = op.change.shift + (op.change.factor - 1.0) * before
        return replace(op, site=place, change=replace(op.change, shift=shift)), ""
    return op, "the residual stream carries what earlier writers wrote; change it at each of them as well"


def _sum_before(hosted: HostedModel, place: Site, unit: Tensor, written: _Written) -> float | None:
    """Return what all writers before a place leave along a direction, if it is the same on all inputs."""
    total = 0.0
    for writer in writers_before(hosted, place):
        left = _left(unit, written.get(writer, ()))
        if left is None:
            return None
        total += left
    return total


def _left(unit: Tensor, events: Sequence[tuple[When, MapOp | None]]) -> float | None:
    """Return what stands along a direction in one writer's output once all has been done to it."""
    maps: list[MapOp] = []
    for _, op in sorted(events, key=lambda event: event[0]):
        maps = [] if op is None else [*maps, op]  # what arrives in between is only met by what follows
    return composed(len(unit), maps).constant_along(unit)


def _require_bounded_writer(hosted: HostedModel, op: MapOp, place: Site) -> None:
    """Refuse bounds where no matrix stands that a fit of them could go into."""
    where = f"interventions[{op.number}].operation"
    if place.kind is SiteKind.EMBED:
        raise refusal(where, f"the embeddings are a table of rows, not a map; bound a later site, {SERVED}")
    if place.kind is SiteKind.ATTN_Z and hosted.architecture.blocks[op.site.layer].attention_post_norm:
        raise refusal(
            where, f"the norm behind attention rescales what reads attn_z; bound attn_out, {SERVED}"
        )


def writer_of(hosted: HostedModel, site: Site) -> Site:
    """Return the output of the module whose sum makes a residual site; other sites are their own."""
    parallel = hosted.architecture.blocks[site.layer].parallel
    if site.kind is SiteKind.RESID_POST:
        return Site(kind=SiteKind.MLP_OUT, layer=site.layer)
    if site.kind is SiteKind.RESID_MID and not parallel:
        return Site(kind=SiteKind.ATTN_OUT, layer=site.layer)
    if site.kind is SiteKind.RESID_PRE and site.layer:
        return Site(kind=SiteKind.MLP_OUT, layer=site.layer - 1)
    if site.kind is SiteKind.RESID_PRE:
        return Site(kind=SiteKind.EMBED, layer=0)
    return site


def post_norm(hosted: HostedModel, site: Site) -> Norm | None:
    """Return the norm between the module that writes a site and the site, if there is one."""
    block = hosted.architecture.blocks[site.layer]
    norms = {SiteKind.MLP_OUT: block.mlp_post_norm, SiteKind.ATTN_OUT: block.attention_post_norm}
    return norms.get(site.kind)


def post_normed(hosted: HostedModel, site: Site) -> bool:
    """True if there is such a norm."""
    return post_norm(hosted, site) is not None


def writers_before(hosted: HostedModel, place: Site) -> list[Site]:
    """List the outputs that have been summed before a writer's own, in order."""
    found = [Site(kind=SiteKind.EMBED, layer=0)]
    for layer in range(hosted.architecture.n_layers):
        for kind in (SiteKind.ATTN_OUT, SiteKind.MLP_OUT):
            site = Site(kind=kind, layer=layer)
            if site == place:
                return found
            found.append(site)
    return found
