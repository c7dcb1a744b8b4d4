"""How much an operation writes on one prompt: on a feature, and on every other that could stand in for it.

What a feature usually writes does not tell what it writes here. Few features of a set are active on a prompt,
and whoever intervenes chose one that is: most features that usually write as much are silent there, and
ablating them changes nothing. Beside such controls any active feature looks special.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trephine.domain.interventions import (
    Add,
    AddNormScaled,
    Condition,
    FeatureTarget,
    Intervention,
    ProjectOut,
)
from trephine.domain.sites import FeatureRef, Site
from trephine.engine.edits.controls import activations_in, place_of
from trephine.engine.interventions.changes import at_strength, change_of
from trephine.engine.interventions.selection import Span, selected_positions
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.sets import opened
from trephine.engine.runs.plans import donor_text
from trephine.engine.runs.refusals import feature_site
from trephine.engine.runs.rows import RowInput, run_rows

WHATEVER_IS_THERE = (Add, AddNormScaled, ProjectOut)
"""What these write depends on no activation of the feature's own."""
_POSITIONS_AT_ONCE = 64

Clean = Mapping[Site, Tensor]
"""Activations `(n_pos, width)` of a plain run."""


def written_on_prompt(
    hosted: HostedModel, ids: Sequence[int], interventions: Sequence[Intervention]
) -> dict[FeatureRef, Tensor]:
    """Measure the rms of what the operations on a feature write, were they done to each feature of its layer.

    Positions are those that selectors and conditions reach; position 0 is left out where there are others,
    since activations of an attention sink would decide alone. Features that are only added to or projected
    out are left out: what is written there is no matter of their activations.

    Args:
        hosted: The model, with the features' sets.
        ids: The prompt.
        interventions: Checked before: donors are long enough.

    Returns:
        Change of the activation x decoder norm, float64 `(d_sae,)`, by intervened feature.
    """
    own = [(i, i.target.feature) for i in interventions if isinstance(i.target, FeatureTarget)]
    own = [(i, feature) for i, feature in own if not isinstance(i.operation, WHATEVER_IS_THERE)]
    if not own:
        return {}
    known = [feature for _, feature in own] + [i.condition.feature for i, _ in own if i.condition is not None]
    sites = sorted({feature_site(hosted, feature) for feature in known})
    clean = _plain(hosted, ids, sites)
    donors = {
        text: _plain(hosted, hosted.encode(text), sites) for text in {donor_text(i) for i, _ in own} if text
    }
    alike: dict[tuple[Any, ...], tuple[Tensor, int]] = {}
    parts: dict[FeatureRef, list[tuple[Tensor, int]]] = {}
    for one, feature in own:
        # Neighbours in a layer that are changed alike have one answer, which is about the whole layer.
        key = (place_of(feature), one.operation, one.selector, one.condition, one.mode.strength)
        if key not in alike:
            reached = _reached(hosted, clean, ids, one)
            donor = donors.get(donor_text(one) or "")
            alike[key] = _squares(hosted, feature, one, clean, donor, reached), len(reached)
        parts.setdefault(feature, []).append(alike[key])
    norms = {place: _decoder_norms(hosted, *place) for place in {place_of(feature) for feature in parts}}
    return {feature: _root_mean(found) * norms[place_of(feature)] for feature, found in parts.items()}


def _root_mean(parts: Sequence[tuple[Tensor, int]]) -> Tensor:
    """Join sums of squares over so many positions each."""
    squares = torch.stack([squares for squares, _ in parts]).sum(0)
    return (squares / max(sum(count for _, count in parts), 1)).sqrt()


def _plain(hosted: HostedModel, ids: Sequence[int], sites: Sequence[Site]) -> Clean:
    return run_rows(hosted, [RowInput(ids=tuple(ids))], reads=sites, keep_last=0).values[0]


def _reached(hosted: HostedModel, clean: Clean, ids: Sequence[int], intervention: Intervention) -> list[int]:
    span = Span(row=0, ids=ids, first=0, offset=0, n_prompt=len(ids))
    positions = selected_positions(intervention.selector, span)
    if intervention.condition is not None:
        positions = _meeting(hosted, clean, positions, intervention.condition)
    return [position for position in positions if position > 0] or positions


def _meeting(hosted: HostedModel, clean: Clean, positions: list[int], condition: Condition) -> list[int]:
    feature = condition.feature
    values, _ = activations_in(hosted, *place_of(feature), clean[feature_site(hosted, feature)][positions])
    met = values[:, feature.index] >= condition.at_least
    return [position for position, meets in zip(positions, met.tolist(), strict=True) if meets]


def _squares(
    hosted: HostedModel,
    feature: FeatureRef,
    intervention: Intervention,
    clean: Clean,
    donor: Clean | None,
    reached: Sequence[int],
) -> Tensor:
    """Sum the squared changes of every feature of the layer, float64 `(d_sae,)` on the CPU."""
    site = feature_site(hosted, feature)
    from_donor = None if donor is None else activations_in(hosted, *place_of(feature), donor[site])[0]
    change = change_of(intervention.operation, norm=1.0, donor=from_donor)
    change = at_strength(change, intervention.mode.strength)
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, max(len(reached), 1), _POSITIONS_AT_ONCE):
        here = list(reached[start : start + _POSITIONS_AT_ONCE])
        whole = clean[site][here]
        values, scale = activations_in(hosted, *place_of(feature), whole)
        total = total + ((change(values, whole, here) - values) * scale).pow(2).sum(0).cpu()
    return total


def _decoder_norms(hosted: HostedModel, name: str, layer: int) -> Tensor:
    with opened(hosted, name, [layer]) as resident:
        return resident[layer].decoder_norms().double().cpu()
