"""Tokens, addresses, targets, versions, progress, figures."""

from __future__ import annotations

from trephine.domain.ablation import LogitTarget
from trephine.domain.commands import Progress
from trephine.domain.findings import Figure
from trephine.domain.sites import NEURONS, FeatureRef, Site, SiteKind
from trephine.domain.tokens import Token
from trephine.rpc.wire.fields import at_least, clean, one_of, qualified, required
from trephine.v1 import common_pb2 as pb

SITE_KINDS = {
    pb.SITE_KIND_EMBED: SiteKind.EMBED,
    pb.SITE_KIND_RESID_PRE: SiteKind.RESID_PRE,
    pb.SITE_KIND_RESID_MID: SiteKind.RESID_MID,
    pb.SITE_KIND_RESID_POST: SiteKind.RESID_POST,
    pb.SITE_KIND_ATTN_OUT: SiteKind.ATTN_OUT,
    pb.SITE_KIND_MLP_IN: SiteKind.MLP_IN,
    pb.SITE_KIND_NEURONS: SiteKind.NEURONS,
    pb.SITE_KIND_MLP_OUT: SiteKind.MLP_OUT,
    pb.SITE_KIND_ATTN_Z: SiteKind.ATTN_Z,
}
SITE_KIND_NUMBERS = {kind: number for number, kind in SITE_KINDS.items()}


def token_to_wire(token: Token) -> pb.Token:
    """Write a token."""
    return pb.Token(id=token.id, raw=token.raw, display=clean(token.display))


def feature_from_wire(message: pb.FeatureRef) -> FeatureRef:
    """Read a feature's address; an empty replacement set means `neurons`."""
    return FeatureRef(
        replacement=message.replacement or NEURONS,
        layer=at_least(message.layer, 0, "layer"),
        index=at_least(message.index, 0, "index"),
    )


def feature_to_wire(feature: FeatureRef) -> pb.FeatureRef:
    """Write a feature's address."""
    return pb.FeatureRef(replacement=clean(feature.replacement), layer=feature.layer, index=feature.index)


def site_from_wire(message: pb.Site) -> Site:
    """Read a site; an unspecified kind is refused."""
    return Site(
        kind=one_of(message.kind, SITE_KINDS, "kind"),
        layer=at_least(message.layer, 0, "layer"),
    )


def site_to_wire(site: Site) -> pb.Site:
    """Write a site."""
    return pb.Site(kind=SITE_KIND_NUMBERS[site.kind], layer=site.layer)


def logit_target_from_wire(message: pb.LogitTarget) -> LogitTarget:
    """Read what is measured at the last position."""
    against = required(message.against, "against") if message.HasField("against") else None
    return LogitTarget(token=required(message.token, "token"), against=against)


def version_to_wire(model: str, weight_hash: str) -> pb.ModelVersion:
    """Name the weights that answered."""
    return pb.ModelVersion(model=qualified("models", model), weight_hash=clean(weight_hash))


def progress_to_wire(progress: Progress) -> pb.Progress:
    """Write where a piece of work is."""
    return pb.Progress(
        stage=clean(progress.stage), done=progress.done, total=progress.total, detail=clean(progress.detail)
    )


def figure_to_wire(figure: Figure) -> pb.Figure:
    """Write a number with its interval."""
    return pb.Figure(
        name=clean(figure.name), value=figure.value, low=figure.low, high=figure.high, unit=clean(figure.unit)
    )
