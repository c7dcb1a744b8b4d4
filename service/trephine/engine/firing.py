"""Where edited features of sets fire, so that certificates can measure these tokens apart."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from trephine.domain.interventions import Intervention
from trephine.domain.sites import FeatureRef
from trephine.engine.hosted import HostedModel
from trephine.engine.replacements.sets import layer_info, opened
from trephine.engine.weights.capture import Windows, captured
from trephine.engine.weights.operations import FeatureOp


def name_of(feature: FeatureRef) -> str:
    """Name a feature as plans and certificates do: SET:LAYER:INDEX."""
    return f"{feature.replacement}:{feature.layer}:{feature.index}"


def firing_masks(
    hosted: HostedModel,
    windows: Windows,
    features: Sequence[FeatureOp],
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
    features: Sequence[FeatureOp],
    interventions: tuple[Intervention, ...],
) -> Generator[None, None, dict[FeatureRef, list[Tensor]]]:
    """Return the same for each feature alone.

    What is read is what arrives at the feature, before it is intervened in: an SAE writes where it reads, and
    behind its own ablation a feature fires nowhere.
    """
    masks: dict[FeatureRef, list[Tensor]] = {}
    if not features:
        return masks
    sites = {
        op.feature: layer_info(hosted, op.feature.replacement, op.feature.layer).site_in for op in features
    }
    chosen = tuple(dict.fromkeys(sites.values()))
    values = yield from captured(hosted, windows, chosen, interventions, before=True)
    for ref, site in sites.items():
        with opened(hosted, ref.replacement, [ref.layer]) as layers:
            found = [
                layers[ref.layer].encode_features(x.to(hosted.model.device), [ref.index])[:, 0]
                for x in values[site]
            ]
        masks[ref] = [(one != 0).cpu() for one in found]
        yield
    return masks
