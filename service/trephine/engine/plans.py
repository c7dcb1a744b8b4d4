"""Interventions made ready to run: which row writes what at which site, and a tally of what was written.

Neurons of one row, layer and selector are written together, so that sixty ablated neurons cost little
more than one. Within a site writes keep the order of the request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

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
from trephine.domain.sites import FeatureRef, Site, SiteKind
from trephine.engine.architecture import Architecture
from trephine.engine.changes import Affine, Change, change_of, side_by_side
from trephine.engine.coordinates import Component, Coordinates, Entries, Whole
from trephine.engine.neurons import decoders, neuron_site
from trephine.engine.refusals import site_written

Donors = Mapping[tuple[str, Site], Tensor]
"""Clean activations `(n_pos, width)` of the texts that mean-ablation and resampling name."""
Activation = Callable[[FeatureRef], Tensor]
"""Gives a neuron's activation `(rows, columns)` in the running pass."""


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
        self.largest = torch.maximum(torch.as_tensor(self.largest, device=sizes.device), sizes.max())

    def applied(self) -> Applied:
        """Return the echo; nothing written is zero positions."""
        return Applied(
            index=self.index,
            layer=self.layer,
            positions=self.positions,
            mean_change=float(self.total) / max(self.positions, 1),
            max_change=float(self.largest),
        )


@dataclass(slots=True, kw_only=True)
class Write:
    """One change of some coordinates of one row, wherever a selector says."""

    row: int
    selector: Selector
    condition: Condition | None
    coordinates: Coordinates
    change: Change
    tallies: list[Tally]

    def apply(self, x: Tensor, columns: Tensor, positions: Sequence[int]) -> None:
        """Write into `x (rows, columns, width)` in place and count."""
        old = x[self.row, columns]
        values = self.coordinates.read(old)
        norms = old.to(torch.float64).norm(dim=-1, keepdim=True)
        new = self.change(values, norms, positions)
        self.coordinates.write(x, self.row, columns, old, values, new)
        for tally, sizes in zip(self.tallies, self.coordinates.sizes(new - values).T, strict=True):
            tally.add(sizes)


@dataclass(slots=True)
class _NeuronGroup:
    """Neurons of one row and layer that share selector and condition, still being collected."""

    indices: list[int] = field(default_factory=list)
    changes: list[Affine] = field(default_factory=list)
    tallies: list[Tally] = field(default_factory=list)


class RowPlan:
    """What is written in one row, by site, in order; keeps its tallies over several passes."""

    def __init__(
        self, architecture: Architecture, row: int, interventions: Sequence[Intervention], donors: Donors
    ) -> None:
        """Compile checked interventions; see `trephine.engine.refusals`."""
        self.row = row
        self.interventions = tuple(interventions)
        self.tallies = [Tally(i, site_written(v).layer) for i, v in enumerate(self.interventions)]
        self.writes: dict[Site, list[Write]] = {}
        self._architecture = architecture
        self._donors = donors
        groups: dict[Site, tuple[tuple[Selector, Condition | None], _NeuronGroup, Write]] = {}
        for intervention, tally in zip(self.interventions, self.tallies, strict=True):
            self._compile(intervention, tally, groups)
        for _, group, write in groups.values():
            self._seal(group, write)

    def applied(self) -> tuple[Applied, ...]:
        """Return what was written so far, one entry per intervention."""
        return tuple(tally.applied() for tally in self.tallies)

    def unmatched(self) -> Iterator[int]:
        """Yield the indices of interventions that have written nothing yet."""
        return (tally.index for tally in self.tallies if tally.positions == 0)

    def _compile(
        self,
        intervention: Intervention,
        tally: Tally,
        groups: dict[Site, tuple[tuple[Selector, Condition | None], _NeuronGroup, Write]],
    ) -> None:
        site, target = site_written(intervention), intervention.target
        coordinates, norm = self._coordinates(intervention, site)
        change = change_of(intervention.operation, norm=norm, donor=self._donor(intervention, site, coordinates))
        key = (intervention.selector, intervention.condition)
        last = groups.get(site)
        is_plain_neuron = site.kind is SiteKind.NEURONS and isinstance(target, FeatureTarget)
        if is_plain_neuron and isinstance(change, Affine):
            index = target.feature.index
            if last is None or last[0] != key or index in last[1].indices:
                if last is not None:
                    self._seal(last[1], last[2])
                last = (key, _NeuronGroup(), self._write(intervention, coordinates, change, []))
                groups[site] = last
                self.writes.setdefault(site, []).append(last[2])
            last[1].indices.append(index)
            last[1].changes.append(change)
            last[1].tallies.append(tally)
            return
        if last is not None:
            self._seal(last[1], last[2])
            del groups[site]
        self.writes.setdefault(site, []).append(self._write(intervention, coordinates, change, [tally]))
