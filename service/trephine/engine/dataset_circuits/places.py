"""Layers of nodes: neurons, attention heads, features of sets, and error terms of sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from trephine.domain.dataset_circuits import ERRORS, HEADS
from trephine.domain.errors import (
    InvalidRequestError,
    LayerOutOfRangeError,
    TrephineError,
    UnsupportedOptionError,
)
from trephine.domain.interventions import ErrorTerm
from trephine.domain.replacements import ReplacementLayerInfo
from trephine.domain.sites import NEURONS, Site, SiteKind
from trephine.domain.spanned_sets import check_parts_apart, written_site
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.neurons import neuron_site
from trephine.engine.models.sites import place_in_pass, require_layer, site_width
from trephine.engine.replacements.sets import covered_layers, layer_info

_KNOWN = {
    SiteKind.MLP_IN, SiteKind.MLP_OUT, SiteKind.ATTN_OUT, SiteKind.RESID_PRE, SiteKind.RESID_MID,
    SiteKind.RESID_POST, SiteKind.EMBED,
}  # fmt: skip
_BETWEEN = {SiteKind.ATTN_OUT, SiteKind.RESID_MID}
"""What parallel blocks do not have, or do not add on its own."""


class NodeKind(StrEnum):
    """What a node is."""

    NEURON = "neuron"
    HEAD = "head"
    FEATURE = "feature"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One layer's nodes of one kind."""

    kind: NodeKind
    owner: str
    """`neurons`, `heads`, a set, or `SET:errors`."""
    set_name: str
    """The set that features and error terms are of, else as `owner`."""
    layer: int
    width: int
    """Nodes."""
    unit: int
    """Numbers that one node's activation has: 1, a head's width, or `d_model` of an error term."""
    source: Site
    outputs: tuple[Site, ...]

    @property
    def is_of_set(self) -> bool:
        """True for features and error terms."""
        return self.kind in (NodeKind.FEATURE, NodeKind.ERROR)

    @property
    def written(self) -> frozenset[Site]:
        """What nodes write to the stream: two owners of one part would be replaced twice."""
        return frozenset(map(written_site, self.outputs))


def lay_places(
    hosted: HostedModel, names: Sequence[str], layers: Sequence[int] | None, error_term: ErrorTerm
) -> tuple[Place, ...]:
    """List every layer of nodes of every name, in the order of a forward pass.

    Args:
        hosted: The model.
        names: `neurons`, `heads` or sets, and `errors` for the error terms of the sets named before.
        layers: Layers to take, each covered by some name; None means all that a name covers.
        error_term: What becomes of error terms that are not nodes.

    Raises:
        ReplacementNotFoundError: If there is no such set.
        LayerOutOfRangeError: If no name covers a layer.
        UnsupportedOptionError: If a site, an error term, or two names beside each other are not supported.
    """
    for layer in layers or ():
        require_layer(hosted.architecture, layer)
    found: list[Place] = []
    for number, name in enumerate(names):
        try:
            added = _errors(hosted, found, error_term) if name == ERRORS else _of_name(hosted, name, layers)
            check_parts_apart(_owners([*found, *added]))
        except TrephineError as error:
            raise error.with_field(f"beside[{number - 1}]" if number else "replacement") from None
        found += added
    _check_covered(names, layers, found)
    _check_error_term(found, error_term)
    return tuple(sorted(found, key=_in_pass))


def _of_name(hosted: HostedModel, name: str, layers: Sequence[int] | None) -> list[Place]:
    covered = range(hosted.info.n_layers) if name == HEADS else covered_layers(hosted, name)
    return [
        _heads(hosted, layer) if name == HEADS else _of_layer(hosted, name, layer_info(hosted, name, layer))
        for layer in covered
        if layers is None or layer in layers
    ]


def _heads(hosted: HostedModel, layer: int) -> Place:
    site, heads = Site(kind=SiteKind.ATTN_Z, layer=layer), hosted.architecture.n_heads
    return Place(
        kind=NodeKind.HEAD,
        owner=HEADS,
        set_name=HEADS,
        layer=layer,
        width=heads,
        unit=site_width(hosted.architecture, site) // heads,
        source=site,
        outputs=(site,),
    )


def _of_layer(hosted: HostedModel, name: str, info: ReplacementLayerInfo) -> Place:
    if name == NEURONS:
        kind, source = NodeKind.NEURON, neuron_site(info.layer)
        outputs: tuple[Site, ...] = (source,)
    else:
        kind, source, outputs = NodeKind.FEATURE, info.site_in, info.sites_out
        _check_sites(info, parallel=hosted.architecture.blocks[info.layer].parallel)
    return Place(
        kind=kind,
        owner=name,
        set_name=name,
        layer=info.layer,
        width=info.d_sae,
        unit=1,
        source=source,
        outputs=outputs,
    )


def _errors(hosted: HostedModel, found: Sequence[Place], error_term: ErrorTerm) -> list[Place]:
    features = [place for place in found if place.kind is NodeKind.FEATURE]
    if not features:
        raise InvalidRequestError(
            "there are no error terms: neurons and heads reconstruct exactly. Name a set before `errors`"
        )
    if error_term is not ErrorTerm.LIVE:
        raise InvalidRequestError(
            f"error terms that are nodes are kept or replaced as nodes are; error_term {error_term.value} "
            "does the same to all of them. Leave one of the two out"
        )
    _check_one_output(features, "error terms as nodes need")
    return [
        Place(
            kind=NodeKind.ERROR,
            owner=f"{place.set_name}:{ERRORS}",
            set_name=place.set_name,
            layer=place.layer,
            width=1,
            unit=site_width(hosted.architecture, place.outputs[0]),
            source=place.source,
            outputs=place.outputs,
        )
        for place in features
    ]


def _in_pass(place: Place) -> tuple[int, int, bool]:
    """Features come before the error terms of their layer."""
    return (*place_in_pass(place.source), place.kind is NodeKind.ERROR)


def _check_sites(info: ReplacementLayerInfo, *, parallel: bool) -> None:
    known = _KNOWN - _BETWEEN if parallel else _KNOWN
    for site in (info.site_in, *info.sites_out):
        if site.kind not in known:
            raise UnsupportedOptionError(
                f"layer {info.layer} of the set is at {site.kind.value}; dataset circuits of this model know "
                f"{', '.join(sorted(kind.value for kind in known))}"
            )


def _check_error_term(found: Sequence[Place], error_term: ErrorTerm) -> None:
    if error_term is not ErrorTerm.LIVE:
        try:
            _check_one_output(found, f"error_term {error_term.value} needs")
        except TrephineError as error:
            raise error.with_field("error_term") from None


def _check_one_output(found: Sequence[Place], what: str) -> None:
    if any(len(place.outputs) > 1 for place in found):
        raise UnsupportedOptionError(
            f"{what} layers that write one site; those of a cross-layer transcoder write several. Use `live`"
        )


def _owners(places: Sequence[Place]) -> Iterator[tuple[str, tuple[Site, ...]]]:
    """List who writes what; error terms go with the features of their set."""
    yield from ((place.owner, place.outputs) for place in places if place.kind is not NodeKind.ERROR)


def _check_covered(names: Sequence[str], layers: Sequence[int] | None, found: Sequence[Place]) -> None:
    for layer in layers or ():
        if all(place.layer != layer for place in found):
            raise LayerOutOfRangeError(
                f"{' and '.join(names)} do not cover layer {layer}; they have "
                f"{', '.join(map(str, sorted({place.layer for place in found})))}. Name some of these, or "
                "add a set that has it",
                field="layers",
                layer=layer,
            )
