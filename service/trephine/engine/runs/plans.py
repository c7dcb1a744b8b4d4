"""Interventions made ready to run: which row writes what at which site, and a tally of what was written.

Neurons of one row, layer and selector are written together, so that sixty ablated neurons cost little
more than one; so are the features of one layer of a set. Within a site writes keep the order of the request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from trephine.domain.errors import UnsupportedInterventionError
from trephine.domain.interventions import (
    Applied,
    Condition,
    DirectionTarget,
    ErrorTerm,
    FeatureTarget,
    Intervention,
    MeanAblate,
    Resample,
    Selector,
)
from trephine.domain.sites import NEURONS, Site, SiteKind
from trephine.engine.interventions.changes import Affine, Change, at_strength, change_of, side_by_side
from trephine.engine.interventions.coordinates import Component, Coordinates, Entries, Whole
from trephine.engine.interventions.tallies import Tally
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.sets import is_degraded, layer_info, opened
from trephine.engine.replacements.writing import FeatureChange, LayerWrite, activations_of
from trephine.engine.runs.refusals import is_of_set, site_written

Donors = Mapping[tuple[str, Site], Tensor]
"""Clean activations `(n_pos, width)` at a site of the texts that mean-ablation and resampling name."""


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
        self,
        hosted: HostedModel,
        interventions: Sequence[Intervention],
        donors: Donors,
        errors: Mapping[Site, Tensor] | None = None,
    ) -> None:
        """Compile interventions that `trephine.engine.runs.refusals` has let through.

        Args:
            hosted: The model with its sets.
            interventions: In the order of the request.
            donors: Clean activations of the texts that operations name.
            errors: The row's clean errors by output site, for features whose error term is frozen.
        """
        compiled: list[Write] = []
        changes: dict[tuple[str, int], list[tuple[ErrorTerm, FeatureChange]]] = {}
        self._tallies: list[Tally] = []
        for index, intervention in enumerate(interventions):
            if is_of_set(intervention):
                key, change = _compile_feature(hosted, index, intervention, donors)
                changes.setdefault(key, []).append((intervention.error_term, change))
                self._tallies.append(change.tally)
            else:
                compiled.append(_compile(hosted, index, intervention, donors))
                self._tallies.append(compiled[-1].tallies[0])
        self.layer_writes = [_layer_write(hosted, key, of, errors or {}) for key, of in changes.items()]
        crossed = {site for write in self.layer_writes for site in (write.source, *write.outputs)}
        by_site: dict[Site, list[Write]] = {}
        for write in compiled:
            by_site.setdefault(write.site, []).append(write)
        self.writes: dict[Site, list[Write]] = {
            site: writes if site in crossed else _joined(writes) for site, writes in by_site.items()
        }

    def applied(self) -> tuple[Applied, ...]:
        """Return what was written so far, one entry per intervention."""
        return tuple(tally.applied() for tally in self._tallies)


def _compile(hosted: HostedModel, index: int, intervention: Intervention, donors: Donors) -> Write:
    site = site_written(hosted, intervention)
    coordinates, norm = _coordinates(hosted, intervention)
    text = donor_text(intervention)
    donor = None if text is None else coordinates.read(donors[text, site])
    return Write(
        site=site,
        selector=intervention.selector,
        condition=intervention.condition,
        coordinates=coordinates,
        change=_change(intervention, norm=norm, donor=donor),
        tallies=(_tally(hosted, index, site.layer, intervention),),
    )


def _compile_feature(
    hosted: HostedModel, index: int, intervention: Intervention, donors: Donors
) -> tuple[tuple[str, int], FeatureChange]:
    target = cast(FeatureTarget, intervention.target)
    feature, text = target.feature, donor_text(intervention)
    donor: Tensor | None = None
    if text is not None:
        x = donors[text, site_written(hosted, intervention)]
        with opened(hosted, feature.replacement, [feature.layer]) as layers:
            _, donor = activations_of(layers[feature.layer], x, [feature.index])
    return (feature.replacement, feature.layer), FeatureChange(
        index=feature.index,
        selector=intervention.selector,
        condition=intervention.condition,
        change=_change(intervention, norm=1.0, donor=donor),
        tally=_tally(hosted, index, feature.layer, intervention),
    )


def _change(intervention: Intervention, *, norm: float, donor: Tensor | None) -> Change:
    change = change_of(intervention.operation, norm=norm, donor=donor)
    return at_strength(change, intervention.mode.strength)


def _tally(hosted: HostedModel, index: int, layer: int, intervention: Intervention) -> Tally:
    target, condition = intervention.target, intervention.condition
    named = [target.feature] if isinstance(target, FeatureTarget) else []
    named += [] if condition is None else [condition.feature]
    degraded = any(is_degraded(hosted, feature.replacement) for feature in named)
    return Tally(index, layer, degraded=degraded)


def _layer_write(
    hosted: HostedModel,
    key: tuple[str, int],
    changes: Sequence[tuple[ErrorTerm, FeatureChange]],
    errors: Mapping[Site, Tensor],
) -> LayerWrite:
    name, layer = key
    info = layer_info(hosted, name, layer)
    terms = {term for term, _ in changes}
    if len(terms) > 1:
        raise UnsupportedInterventionError(
            f"error_term: features of layer {layer} of {name} share one error term in a row; use one of "
            f"{', '.join(sorted(term.value for term in terms))} for all of them, or two rows",
            field="error_term",
        )
    return LayerWrite(
        replacement=name,
        layer=layer,
        source=info.site_in,
        outputs=info.sites_out,
        error_term=terms.pop(),
        changes=tuple(change for _, change in changes),
        errors={site: errors[site] for site in info.sites_out if site in errors},
    )


def _coordinates(hosted: HostedModel, intervention: Intervention) -> tuple[Coordinates, float]:
    """Return what is written, and the length of the vector that `add` takes as given."""
    target, device = intervention.target, hosted.architecture.W_U.device
    if isinstance(target, FeatureTarget):
        feature, site = target.feature, site_written(hosted, intervention)
        if site.kind is SiteKind.NEURONS and feature.replacement == NEURONS:
            return Entries(indices=(feature.index,)), 1.0
        with opened(hosted, feature.replacement, [feature.layer]) as layers:
            vector = layers[feature.layer].decoders([feature.index], site)[0].to(torch.float64)
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
