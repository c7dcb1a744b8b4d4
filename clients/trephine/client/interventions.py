"""Interventions: reversible changes during a forward pass, built in a line.

feature(12, 345).ablate()
feature(12, 345).scale(0.5, at=Where(positions=(4,)))
direction("resid_post", 20, vector).add(8.0)
feature(29, 17).add(30.0).generating()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trephine.client.errors import InvalidRequestError
from trephine.client.set_ids import AnySet, set_id
from trephine.client.types.common import FeatureRef, Site, SiteKind
from trephine.client.types.interventions import EVERYWHERE, Change, Direction, Head, Intervention, Where

__all__ = [
    "Direction",
    "Handle",
    "Head",
    "Intervention",
    "Where",
    "activation",
    "direction",
    "feature",
    "site",
]


@dataclass(frozen=True, slots=True)
class Handle:
    """A target that waits for its operation. Made by `feature`, `direction` and `site`."""

    target: FeatureRef | Direction | Site
    where: Where = field(default=EVERYWHERE)

    def _make(self, change: Change, at: Where | None) -> Intervention:
        return Intervention(target=self.target, change=change, where=at or self.where)

    def ablate(self, *, at: Where | None = None) -> Intervention:
        """Set it to zero."""
        return self._make(Change(kind="ablate"), at)

    def scale(self, factor: float, *, at: Where | None = None) -> Intervention:
        """Multiply it."""
        return self._make(Change(kind="scale", value=factor), at)

    def set(self, value: float, *, at: Where | None = None) -> Intervention:
        """Set it to a value."""
        return self._make(Change(kind="set", value=value), at)

    def clamp(
        self, low: float | None = None, high: float | None = None, *, at: Where | None = None
    ) -> Intervention:
        """Clip it into an interval; give at least one bound."""
        return self._make(Change(kind="clamp", value=(low, high)), at)

    def add(self, amount: float, *, at: Where | None = None) -> Intervention:
        """Add activation units (feature), or this many times the vector (direction)."""
        return self._make(Change(kind="add", value=amount), at)

    def add_norm_scaled(self, fraction: float, *, at: Where | None = None) -> Intervention:
        """Add the unit vector times this share of the site's own norm."""
        return self._make(Change(kind="add_norm_scaled", value=fraction), at)

    def project_out(self, *, at: Where | None = None) -> Intervention:
        """Remove the component along the direction, or along the feature's decoder."""
        return self._make(Change(kind="project_out"), at)

    def mean_ablate(self, text: str, *, at: Where | None = None) -> Intervention:
        """Set it to its mean over this text's positions >= 1."""
        return self._make(Change(kind="mean_ablate_text", value=text), at)

    def resample(self, donor: str, *, at: Where | None = None) -> Intervention:
        """Take it from another prompt, same position."""
        return self._make(Change(kind="resample_donor", value=donor), at)


def feature(layer: int, index: int, *, replacement: AnySet = "") -> Handle:
    """A feature by its address; without `replacement` one of the model's own neurons."""
    return Handle(FeatureRef(layer=layer, index=index, replacement=set_id(replacement)))


def site(kind: str, layer: int) -> Site:
    """The address of an activation: `site("resid_post", 12)`.

    Raises:
        InvalidRequestError: If there is no such kind of site.
    """
    if kind not in {known.value for known in SiteKind} - {"unspecified"}:
        known = ", ".join(known.value for known in SiteKind if known is not SiteKind.UNSPECIFIED)
        raise InvalidRequestError(f"no site is called {kind!r}; choose one of {known}", field="site.kind")
    return Site(kind=SiteKind(kind), layer=layer)


def direction(kind: str, layer: int, vector: Sequence[float]) -> Handle:
    """A direction at a site, for steering and projection; the vector is as wide as the site."""
    return Handle(Direction(site=site(kind, layer), vector=tuple(float(part) for part in vector)))


def activation(kind: str, layer: int) -> Handle:
    """A whole activation vector at a site: `activation("mlp_out", 12).resample(donor)`."""
    return Handle(site(kind, layer))
