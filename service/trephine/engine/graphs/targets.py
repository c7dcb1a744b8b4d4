"""What is explained in a graph over a set: features' pre-activations, and logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.sites import SiteKind
from trephine.engine.graphs.actives import ActiveFeatures, ActiveLayer
from trephine.engine.graphs.places import PER_BLOCK, clean_value, place_of
from trephine.engine.hosted import HostedModel
from trephine.engine.operators import FrozenOperators
from trephine.engine.readouts import LogitReadout
from trephine.engine.replacements.sets import opened


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureTargets:
    """Linear read-outs of the residual stream, from the top down."""

    place: Tensor
    """int64 `(n_targets,)`, on the CPU, descending: where each reads."""
    position: Tensor
    """int64 `(n_targets,)`, on the CPU."""
    adjoint: Tensor
    """`(n_targets, d_model)`, the derivative by the stream that is read, a norm's frozen scale applied."""
    constant: Tensor
    """`(n_targets,)`, what constants on the way from the stream to the read-out add."""
    total: Tensor
    """`(n_targets,)`, what everything that enters must sum to: the pre-activation without `b_enc`."""

    def __post_init__(self) -> None:
        if (self.place[1:] > self.place[:-1]).any():
            raise ValueError("targets must be sorted from the top down")


def logit_targets(operators: FrozenOperators, readouts: list[LogitReadout]) -> FeatureTargets:
    """Explain logit read-outs at the last position."""
    last, dtype = operators.n_pos - 1, operators.dtype
    direction = torch.stack([readout.direction for readout in readouts]).to(operators.device, dtype)
    own = torch.tensor([readout.bias for readout in readouts], dtype=dtype, device=operators.device)
    norm = operators.final_norm
    position = torch.full((len(readouts),), last)
    constant = own if norm.bias is None else own + direction @ norm.bias
    return FeatureTargets(
        place=torch.full((len(readouts),), PER_BLOCK * len(operators.layers)),
        position=position,
        adjoint=norm.pull_back(direction, position.to(operators.device)),
        constant=constant,
        total=direction @ operators.final[last] + own,
    )


def feature_targets(
    hosted: HostedModel, operators: FrozenOperators, active: ActiveFeatures, cells: Tensor
) -> FeatureTargets:
    """Explain the pre-activations of active features, `cells (n,)` sorted from the top down."""
    parts: list[tuple[int, Tensor, Tensor, Tensor, Tensor]] = []
    for layer in reversed(active.layers):
        own = cells[(cells >= layer.start) & (cells < layer.start + layer.count)] - layer.start
        if len(own):
            parts.append((place_of(layer.info.site_in), *_read(hosted, operators, active, layer, own)))
    place = torch.cat([torch.full((len(position),), at) for at, position, *_ in parts])
    position, adjoint, constant, total = (torch.cat(column) for column in list(zip(*parts, strict=True))[1:])
    return FeatureTargets(
        place=place, position=position.cpu(), adjoint=adjoint, constant=constant, total=total
    )


def _read(
    hosted: HostedModel,
    operators: FrozenOperators,
    active: ActiveFeatures,
    layer: ActiveLayer,
    own: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return position, adjoint, constant and total of some of a layer's active features."""
    info = layer.info
    own = own.to(layer.index.device)
    position, index = layer.position[own], layer.index[own]
    with opened(hosted, active.replacement, [info.layer]) as resident, torch.inference_mode():
        direction = resident[info.layer].encoders(index.tolist()).to(operators.dtype)
    direction = direction / layer.read_scale[position, None].to(operators.dtype)
    total = (direction * clean_value(operators, info.site_in)[position]).sum(-1)
    if info.site_in.kind is not SiteKind.MLP_IN:
        return position, direction, torch.zeros_like(total), total
    norm = operators.layers[info.layer].mlp_norm
    constant = torch.zeros_like(total) if norm.bias is None else direction @ norm.bias
    return position, norm.pull_back(direction, position), constant, total
