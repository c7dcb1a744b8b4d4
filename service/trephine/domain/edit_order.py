"""Whether what two interventions do at a site depends on which of them acts first.

Writes at one site keep the order of the request (engine.plans), so two interventions can be swapped only if

- each leaves alone what the other one writes: different neurons, features that share one encoding, components
  along orthogonal directions; or both only add something that does not depend on what is there; and
- neither reads there what the other one writes: an SAE encodes the site that it changes, a condition may ask
  about it, and a shift by a share of the norm measures it.

What is read further down in a pass sees every write at the site, in whatever order they came: a transcoder's
input, a condition on an earlier layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

from trephine.domain.interventions import (
    Add,
    AddNormScaled,
    DirectionTarget,
    ErrorTerm,
    FeatureTarget,
    Intervention,
    ProjectOut,
    SiteTarget,
    Target,
)
from trephine.domain.sites import NEURONS, FeatureRef, Site, SiteKind

_ORTHOGONAL = 1e-6
"""Cosine below which two directions are called orthogonal: float32 rounding of long vectors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlaces:
    """Where the features of one layer of a set are read and where they write."""

    source: Site
    outputs: tuple[Site, ...]


Places = Mapping[tuple[str, int], LayerPlaces]
"""By set and layer."""


def where_order_matters(one: Intervention, other: Intervention, places: Places) -> Site | None:
    """Return a site at which two interventions with different targets cannot be swapped; None if they can."""
    if shares_layer(one, other):
        return None
    ours, theirs = _written(one, places), _written(other, places)
    met = set() if _commute(one, other) else ours & theirs
    met |= {site for site in _read_there(one, ours, places) & theirs if _disturbs(other, one)}
    met |= {site for site in _read_there(other, theirs, places) & ours if _disturbs(one, other)}
    return min(met, default=None)


def shares_layer(one: Intervention, other: Intervention) -> bool:
    """True for features of one layer of a set: they share one encoding and one error term."""
    ours, theirs = _set_feature(one), _set_feature(other)
    return ours is not None and theirs is not None and _layer(ours) == _layer(theirs)


def is_same_target(one: Target, other: Target) -> bool:
    """True if two targets are the same coordinates; parallel directions are, opposite ones too."""
    if isinstance(one, DirectionTarget) and isinstance(other, DirectionTarget):
        return _canonical(one.site) == _canonical(other.site) and 1 - _cosine(one, other) < _ORTHOGONAL
    return one == other


def opposed(one: Target, other: Target) -> bool:
    """True if two targets are directions that point opposite ways: each component is minus the other's."""
    if not isinstance(one, DirectionTarget) or not isinstance(other, DirectionTarget):
        return False
    return is_same_target(one, other) and _dot(one, other) < 0


def _commute(one: Intervention, other: Intervention) -> bool:
    if _is_neuron(one) and _is_neuron(other):
        return True
    if _is_shift(one) and _is_shift(other):
        return True
    if isinstance(one.target, DirectionTarget) and isinstance(other.target, DirectionTarget):
        return _cosine(one.target, other.target) < _ORTHOGONAL
    return False


def _read_there(one: Intervention, written: set[Site], places: Places) -> set[Site]:
    """What an intervention reads, beside its own coordinates, at sites that it writes itself."""
    read: list[Site] = []
    own = _set_feature(one)
    if own is not None:
        read += [found.source for found in _found(places, own)]
    if one.condition is not None:
        feature = one.condition.feature
        neurons = Site(kind=SiteKind.NEURONS, layer=feature.layer)
        is_neuron = feature.replacement == NEURONS
        read += [neurons] if is_neuron else [found.source for found in _found(places, feature)]
    if isinstance(one.operation, AddNormScaled):
        read += written
    return written & set(map(_canonical, read))


def _disturbs(writer: Intervention, reader: Intervention) -> bool:
    """False if a condition asks about a neuron and what is written are other ones."""
    asks_neuron = reader.condition is not None and reader.condition.feature.replacement == NEURONS
    return not (asks_neuron and _is_neuron(reader) and _is_neuron(writer))


def _is_neuron(one: Intervention) -> bool:
    """True for a neuron at its own site: what happens to it depends on no other one."""
    target = one.target
    if not isinstance(target, FeatureTarget) or isinstance(one.operation, ProjectOut):
        return False
    return target.feature.replacement == NEURONS


def _is_shift(one: Intervention) -> bool:
    """True if it adds to what is there, and puts nothing in its place."""
    if _set_feature(one) is not None:
        return one.error_term is ErrorTerm.LIVE
    return not isinstance(one.target, SiteTarget) and isinstance(one.operation, Add | AddNormScaled)


def _set_feature(one: Intervention) -> FeatureRef | None:
    """The feature of a set that is read at one site and written at others."""
    target = one.target
    if not isinstance(target, FeatureTarget) or isinstance(one.operation, ProjectOut):
        return None
    return None if target.feature.replacement == NEURONS else target.feature


def _written(one: Intervention, places: Places) -> set[Site]:
    target = one.target
    if not isinstance(target, FeatureTarget):
        return {_canonical(target.site)}
    feature = target.feature
    if feature.replacement == NEURONS:
        kind = SiteKind.MLP_OUT if isinstance(one.operation, ProjectOut) else SiteKind.NEURONS
        return {Site(kind=kind, layer=feature.layer)}
    return {_canonical(site) for found in _found(places, feature) for site in found.outputs}


def _found(places: Places, feature: FeatureRef) -> list[LayerPlaces]:
    """The feature's layer; none if its set is not loaded, and then nothing is known of where it acts."""
    return [places[_layer(feature)]] if _layer(feature) in places else []


def _layer(feature: FeatureRef) -> tuple[str, int]:
    return feature.replacement, feature.layer


def _canonical(site: Site) -> Site:
    """Give the residual stream between two blocks one name."""
    if site.kind is SiteKind.RESID_PRE and site.layer > 0:
        return Site(kind=SiteKind.RESID_POST, layer=site.layer - 1)
    return Site(kind=SiteKind.EMBED, layer=0) if site.kind is SiteKind.RESID_PRE else site


def _cosine(one: DirectionTarget, other: DirectionTarget) -> float:
    """Absolute cosine; 0 where widths differ, which an engine refuses anyway."""
    if len(one.vector) != len(other.vector):
        return 0.0
    norms = _dot(one, one) * _dot(other, other)
    return abs(_dot(one, other)) / sqrt(norms) if norms > 0 else 0.0


def _dot(one: DirectionTarget, other: DirectionTarget) -> float:
    return sum(a * b for a, b in zip(one.vector, other.vector, strict=True))
