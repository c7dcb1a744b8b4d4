"""What the edited features read, as directions of the residual stream, and the layers where they do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trephine.domain.interventions import DirectionTarget, FeatureTarget, Intervention, ProjectOut, SiteTarget
from trephine.domain.sites import NEURONS, FeatureRef, Site, SiteKind
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.sets import layer_info, opened

_RESIDUAL = (
    *(SiteKind.EMBED, SiteKind.RESID_PRE, SiteKind.RESID_MID, SiteKind.RESID_POST),
    *(SiteKind.ATTN_OUT, SiteKind.MLP_OUT),
)


def edited_layers(interventions: Sequence[Intervention]) -> tuple[int, ...]:
    """Return the layers of an edit, ascending."""
    return tuple(sorted({_layer(intervention) for intervention in interventions}))


def read_directions(hosted: HostedModel, interventions: Sequence[Intervention]) -> Tensor:
    """Return the directions by which edited features read the residual stream, float32 `(k, d_model)`.

    An encoder behind a norm is carried in front of it: through its gain, and centred where the norm centres.
    What reads attention's heads reads no direction of the stream at the position itself and adds none. Where
    a feature's decoder is projected out, that is what is read, and its encoder is not.
    """
    rows = [torch.zeros(0, hosted.info.d_model)]
    for intervention in interventions:
        target = intervention.target
        if isinstance(target, FeatureTarget) and isinstance(intervention.operation, ProjectOut):
            rows.append(_decoder(hosted, target.feature))
        elif isinstance(target, FeatureTarget):
            rows.append(_encoders(hosted, target.feature))
        elif isinstance(target, DirectionTarget) and target.site.kind in _RESIDUAL:
            rows.append(torch.tensor([target.vector]))
    return torch.cat([row.float().cpu() for row in rows])


def _encoders(hosted: HostedModel, feature: FeatureRef) -> Tensor:
    block = hosted.architecture.blocks[feature.layer]
    if feature.replacement == NEURONS:
        mlp = block.mlp
        rows = [w[feature.index] for w in (mlp.W_in, mlp.W_gate) if w is not None]
        return _before_norm(hosted, feature.layer, torch.stack(rows).float())
    info = layer_info(hosted, feature.replacement, feature.layer)
    with opened(hosted, feature.replacement, [feature.layer]) as layers:
        rows_of = layers[feature.layer].encoders([feature.index]).float()
    if info.site_in.kind is SiteKind.MLP_IN:
        return _before_norm(hosted, info.site_in.layer, rows_of)
    return rows_of if info.site_in.kind in _RESIDUAL else rows_of[:0].new_zeros(0, hosted.info.d_model)


def _decoder(hosted: HostedModel, feature: FeatureRef) -> Tensor:
    site = layer_info(hosted, feature.replacement, feature.layer).sites_out[0]
    if site.kind not in _RESIDUAL:
        return torch.zeros(0, hosted.info.d_model)
    with opened(hosted, feature.replacement, [feature.layer]) as layers:
        return layers[feature.layer].decoders([feature.index], site)


def _before_norm(hosted: HostedModel, layer: int, rows: Tensor) -> Tensor:
    norm = hosted.architecture.blocks[layer].mlp_norm
    return norm.centre(rows * norm.gain.float())


def _layer(intervention: Intervention) -> int:
    target = intervention.target
    if isinstance(target, FeatureTarget):
        return target.feature.layer
    site: Site | None = target.site if isinstance(target, DirectionTarget | SiteTarget) else None
    return 0 if site is None else site.layer
