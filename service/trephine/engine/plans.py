"""Interventions made ready to run: which row writes what at which site, and a tally of what was written.

Neurons of one row, layer and selector are written together, so that sixty ablated neurons cost little
more than one. Within a site writes keep the order of the request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trephine.domain.interventions import (
    Applied,
    Condition,
    DirectionTarget,
    FeatureTarget,
    Intervention,
    MeanAblate,
    Resample,
    Selector,
)
from trephine.domain.sites import Site, SiteKind
from trephine.engine.architecture import Architecture
from trephine.engine.changes import Affine, Change, change_of, side_by_side
from trephine.engine.coordinates import Component, Coordinates, Entries, Whole
from trephine.engine.neurons import decoders
from trephine.engine.refusals import site_written

Donors = Mapping[tuple[str, Site], Tensor]
"""Clean activations `(n_pos, width)` at a site of the texts that mean-ablation and resampling name."""


@dataclass(slots=True)
class Tally:
    """How often and how far one intervention wrote."""

    index: int
    layer: int
    positions: int = 0
    total: Tensor | float = 0.0
    largest: Tensor | float = 0.0

    def add(self, sizes: Tensor) -> None:
        """Count the L2 sizes `(n,)` of changes."""
        self.positions += sizes.shape[0]
        self.total = self.total + sizes.sum()
        self.largest = sizes.max().clamp_min(self.largest)

    def applied(self) -> Applied:
        """Return the echo; nothing written is zero positions."""
        return Applied(
            index=self.index,
            layer=self.layer,
            positions=self.positions,
            mean_change=float(self.total) / max(self.positions, 1),
            max_change=float(self.largest),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One change of some coordinates at one site of one row, wherever a selector says."""

    site: Site
    selector: Selector
    condition: Condition | None
    coordinates: Coordinates
    change: Change
    tallies: tuple[Tally, ...]

    def apply(self, x: Tensor, columns: Tensor, positions: Sequence[int]) -> None:
        """Write into one row's `x (columns, width)` in place and count."""
        old = x[columns]
        values = self.coordinates.read(old)
        new = self.change(values, old, positions)
        self.coordinates.write(x, columns, old, values, new)
        for tally, sizes in zip(self.tallies, self.coordinates.sizes(new - values).T, strict=True):
            tally.add(sizes)


def donor_text(intervention: Intervention) -> str | None:
    """Return the text whose activations an operation needs, if it needs one."""
    operation = intervention.operation
    if isinstance(operation, MeanAblate):
        return operation.text
    return operation.donor if isinstance(operation, Resample) else None


class RowPlan:
    """What is written in one row, by site and in order; its tallies add up over several passes."""

    def __init__(
        self, architecture: Architecture, interventions: Sequence[Intervention], donors: Donors
    ) -> None:
        """Compile interventions that `trephine.engine.refusals` has let through."""
        compiled = [_compile(architecture, i, v, donors) for i, v in enumerate(interventions)]
        self._tallies = [write.tallies[0] for write in compiled]
        by_site: dict[Site, list[Write]] = {}
        for write in compiled:
            by_site.setdefault(write.site, []).append(write)
        self.writes: dict[Site, list[Write]] = {site: _joined(writes) for site, writes in by_site.items()}

    def applied(self) -> tuple[Applied, ...]:
        """Return what was written so far, one entry per intervention."""
        return tuple(tally.applied() for tally in self._tallies)


def _compile(architecture: Architecture, index: int, intervention: Intervention, donors: Donors) -> Write:
    site = site_written(intervention)
    coordinates, norm = _coordinates(architecture, intervention)
    text = donor_text(intervention)
    donor = None if text is None else coordinates.read(donors[text, site])
    return Write(
        site=site,
        selector=intervention.selector,
        condition=intervention.condition,
        coordinates=coordinates,
        change=change_of(intervention.operation, norm=norm, donor=donor),
        tallies=(Tally(index, site.layer),),
    )


def _coordinates(architecture: Architecture, intervention: Intervention) -> tuple[Coordinates, float]:
    """Return what is written, and the length of the vector that `add` takes as given."""
    target, device = intervention.target, architecture.W_U.device
    if isinstance(target, FeatureTarget):
        feature = target.feature
        if site_written(intervention).kind is SiteKind.NEURONS:
            return Entries(indices=(feature.index,)), 1.0
        vector = decoders(architecture, feature.layer, [feature.index])[0].to(torch.float64)
    elif isinstance(target, DirectionTarget):
        vector = torch.tensor(target.vector, dtype=torch.float64, device=device)
    else:
        return Whole(), 1.0
    norm = float(vector.norm())
    return Component(unit=vector / norm if norm else vector), norm


def _joined(writes: Sequence[Write]) -> list[Write]:
    """Join neighbouring writes of different neurons that can be carried out at once."""
    runs: list[list[Write]] = []
    for write in writes:
        if runs and _can_join(runs[-1], write):
            runs[-1].append(write)
        else:
            runs.append([write])
    return [run[0] if len(run) == 1 else _join(run) for run in runs]


def _can_join(run: Sequence[Write], write: Write) -> bool:
    first = run[0]
    return (
        isinstance(write.change, Affine)
        and isinstance(first.change, Affine)
        and (write.selector, write.condition) == (first.selector, first.condition)
        and isinstance(write.coordinates, Entries)
        and isinstance(first.coordinates, Entries)
        and write.coordinates.indices[0] not in _indices(run)
    )


def _indices(run: Sequence[Write]) -> tuple[int, ...]:
    return tuple(i for w in run if isinstance(w.coordinates, Entries) for i in w.coordinates.indices)


def _join(run: Sequence[Write]) -> Write:
    return replace(
        run[0],
        coordinates=Entries(indices=_indices(run)),
        change=side_by_side([w.change for w in run if isinstance(w.change, Affine)]),
        tallies=tuple(tally for write in run for tally in write.tallies),
    )
