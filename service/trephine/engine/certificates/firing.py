"""Where edited features of sets fire, so that certificates can measure these tokens apart.

A direction whose component is bounded, which can only be fitted, counts as a feature that fires where the
bound changes something.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from trephine.domain.interventions import Intervention
from trephine.domain.sites import Site
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.sets import layer_info, opened
from trephine.engine.weights.capture import Windows, captured
from trephine.engine.weights.linear import MapOp
from trephine.engine.weights.operations import FeatureOp
from trephine.engine.weights.parts import Part

Acting = FeatureOp | MapOp | Part
"""What has tokens of its own: all operations on a feature of a set, or a bound on a direction, where they
change something; what acts everywhere, where it does most."""


def name_of(op: Acting) -> str:
    """Name it as plans and certificates do: SET:LAYER:INDEX, or SITE:LAYER:interventions[N]."""
    if isinstance(op, Part):
        return op.name
    if isinstance(op, MapOp):
        return f"{op.site.kind.value}:{op.site.layer}:interventions[{op.number}]"
    return f"{op.feature.replacement}:{op.feature.layer}:{op.feature.index}"


def numbers_of(op: Acting) -> tuple[int, ...]:
    """Return which interventions of the edit it is."""
    return (op.number,) if isinstance(op, MapOp) else tuple(op.numbers)


def firing_masks(
    hosted: HostedModel,
    windows: Windows,
    features: Sequence[Acting],
    interventions: tuple[Intervention, ...],
) -> Generator[None, None, list[Tensor]]:
    """Return per window the positions at which any of the features is active, bool `(n_pos,)`.

    Read in the intervened model, one batch of windows a quantum.
    """
    alone = yield from masks_by_feature(hosted, windows, features, interventions)
    masks = [torch.zeros(len(window), dtype=torch.bool) for window in windows]
    for each in alone.values():
        masks = [mask | own for mask, own in zip(masks, each, strict=True)]
    return masks


def masks_by_feature(
    hosted: HostedModel,
    windows: Windows,
    features: Sequence[Acting],
    interventions: tuple[Intervention, ...],
) -> Generator[None, None, dict[str, list[Tensor]]]:
    """Return the same for each feature alone, by name.

    What is read is what arrives at the feature, before it is intervened in: an SAE writes where it reads, and
    behind its own ablation a feature fires nowhere.
    """
    masks: dict[str, list[Tensor]] = {}
    if not features:
        return masks
    sites = tuple(dict.fromkeys(site for op in features for site in _sources(hosted, op)))
    values = yield from captured(hosted, windows, sites, interventions, before=True)
    for op in features:
        if isinstance(op, Part):
            masks[name_of(op)] = op.masks(values)
        else:
            masks[name_of(op)] = [_fires(hosted, op, x) for x in values[_sources(hosted, op)[0]]]
        yield
    return masks


def _sources(hosted: HostedModel, op: Acting) -> tuple[Site, ...]:
    if isinstance(op, Part):
        return op.sites
    if isinstance(op, MapOp):
        return (op.site,)
    return (layer_info(hosted, op.feature.replacement, op.feature.layer).site_in,)


def _fires(hosted: HostedModel, op: FeatureOp | MapOp, x: Tensor) -> Tensor:
    """Return where one acts on what arrives, bool `(n_pos,)`, on the CPU."""
    if isinstance(op, MapOp):
        if op.unit is None:
            raise ValueError("a whole site is scaled exactly, and has no bound")
        found = x.to(torch.float64) @ op.unit.to(x.device)
        return (op.change(found[:, None], found, ())[:, 0] != found).cpu()
    ref = op.feature
    with opened(hosted, ref.replacement, [ref.layer]) as layers:
        active = layers[ref.layer].encode_features(x.to(hosted.model.device), [ref.index])[:, 0]
    return (active != 0).cpu()
