"""Which replacement sets, and layers of sets, an explanation may span together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trephine.domain.errors import InvalidRequestError, UnsupportedOptionError
from trephine.domain.replacements import ReplacementLayerInfo
from trephine.domain.sites import NEURONS, Site, SiteKind


def check_spanned_sets(replacement: str, beside: Sequence[str]) -> None:
    """Refuse a set that is named twice, and neurons as the first of several.

    Raises:
        InvalidRequestError: Naming the field.
    """
    sets = (replacement, *beside)
    twice = sorted({name for name in sets if sets.count(name) > 1})
    if twice:
        raise InvalidRequestError(f"{', '.join(twice)} is named twice; name it once", field="beside")
    if beside and replacement == NEURONS:
        raise InvalidRequestError(
            "neurons are what is left where no set reconstructs an MLP: name a set as the replacement, and "
            "neurons beside it",
            field="replacement",
        )


def check_sites_apart(layers: Iterable[tuple[str, ReplacementLayerInfo]], *, choosable: bool = True) -> None:
    """Refuse layers that reconstruct one site, or one place of the residual stream: no site has two owners.

    Args:
        layers: Those that are opened, each with the name of its set.
        choosable: Whether whoever asked has an option `layers`, which a refusal may point to.

    Raises:
        UnsupportedOptionError: Naming the field.
    """
    found = list(layers)
    writers: dict[Site, str] = {}
    choice = ", or choose layers with `layers` that only one of them has" if choosable else ""
    for name, info in found:
        for site in info.sites_out:
            other = writers.setdefault(site, name)
            if other != name:
                raise UnsupportedOptionError(
                    f"{other} and {name} both reconstruct {site.kind.value} of layer {site.layer}: what is "
                    f"one's could be the other's as well. Leave one of them out{choice}",
                    field="beside",
                    layer=site.layer,
                )
    places = (stream_place(site) for _, info in found for site in info.sites_out)
    cuts = [place for place in places if place is not None]
    if len(set(cuts)) < len(cuts):
        choice = "choose one with `layers`" if choosable else "name sets of which only one does"
        raise UnsupportedOptionError(
            f"two layers reconstruct the same place of the residual stream; {choice}",
            field="layers" if choosable else "beside",
        )


def stream_place(site: Site) -> int | None:
    """Return which place of the residual stream a site is, from the bottom up; None: it is none.

    The stream before a block is the stream after the one below it.
    """
    match site.kind:
        case SiteKind.EMBED:
            return -1
        case SiteKind.RESID_PRE:
            return 2 * site.layer - 1
        case SiteKind.RESID_MID:
            return 2 * site.layer
        case SiteKind.RESID_POST:
            return 2 * site.layer + 1
        case _:
            return None


_WRITTEN_BY = {SiteKind.NEURONS: SiteKind.MLP_OUT, SiteKind.ATTN_Z: SiteKind.ATTN_OUT}


def written_site(site: Site) -> Site:
    """Return where what stands at a site is written: neurons are their MLP's output, heads attention's."""
    return Site(kind=_WRITTEN_BY.get(site.kind, site.kind), layer=site.layer)


def check_parts_apart(owners: Iterable[tuple[str, Iterable[Site]]]) -> None:
    """Refuse two owners of one part of the stream: to ablate both would take it out twice.

    Args:
        owners: Names, each with the sites that its nodes write; a name may come several times.

    Raises:
        UnsupportedOptionError: Naming both.
    """
    known: dict[object, str] = {}
    for name, sites in owners:
        for site in map(written_site, sites):
            place = stream_place(site)
            other = known.setdefault(site if place is None else place, name)
            if other != name:
                raise UnsupportedOptionError(
                    f"{name} and {other} both stand for {site.kind.value} of layer {site.layer}, which would "
                    "be replaced twice. Name one of them"
                )
