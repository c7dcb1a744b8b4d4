"""Short spellings of interventions for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trephine.domain.interventions import (
    DirectionTarget,
    FeatureTarget,
    Intervention,
    Operation,
    Selector,
    SiteTarget,
)
from trephine.domain.sites import FeatureRef, Site, SiteKind


def neuron(layer: int, index: int, operation: Operation, **rest: Any) -> Intervention:
    """Change one neuron."""
    feature = FeatureRef(layer=layer, index=index)
    return Intervention(target=FeatureTarget(feature=feature), operation=operation, **rest)


def direction(
    kind: SiteKind, layer: int, vector: Sequence[float], operation: Operation, **rest: Any
) -> Intervention:
    """Change the component along a vector."""
    target = DirectionTarget(site=Site(kind=kind, layer=layer), vector=tuple(vector))
    return Intervention(target=target, operation=operation, **rest)


def whole(kind: SiteKind, layer: int, operation: Operation, **rest: Any) -> Intervention:
    """Change a whole activation."""
    return Intervention(target=SiteTarget(site=Site(kind=kind, layer=layer)), operation=operation, **rest)


def at(*positions: int) -> Selector:
    """Select positions."""
    return Selector(positions=positions)
