"""What is explained in a graph over a set: features' pre-activations, and logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.replacements import LayerKind
from trephine.domain.sites import SiteKind
from trephine.engine.attribution.operators import FrozenOperators
from trephine.engine.attribution.places import PER_BLOCK, clean_value
from trephine.engine.attribution.readouts import LogitReadout, neuron_targets
from trephine.engine.attribution.targets import ReadPart
from trephine.engine.graphs.actives import ActiveFeatures, ActiveLayer
from trephine.engine.graphs.linearised import is_linearised, read_place, through_mlp
from trephine.engine.models.hosted import HostedModel
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
    """`(n_targets,)`, what everything that enters must sum to: the pre-activation without the encoder's
    constants, which are `b_enc` and the biases that are subtracted from its input."""

    def __post_init__(self) -> None:
        if (self.place[1:] > self.place[:-1]).any():
            raise ValueError("targets must be sorted from the top down")


def read_targets(operators: FrozenOperators, parts: Sequence[ReadPart]) -> FeatureTargets:
    """Explain read-outs of the stream, sorted from the top down."""
    dtype, device = operators.dtype, operators.device
    return FeatureTargets(
        place=torch.tensor([part.place for part in parts]),
        position=torch.tensor([part.position for part in parts]),
        adjoint=torch.stack([part.adjoint for part in parts]),
        constant=torch.tensor([part.constant for part in parts], dtype=dtype, device=device),
        total=torch.tensor([part.total for part in parts], dtype=dtype, device=device),
    )


def logit_targets(operators: FrozenOperators, readouts: list[LogitReadout]) -> FeatureTargets:
    """Explain logit read-outs at the last position, as laws state them."""
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
            parts.append((read_place(layer.info), *_read(hosted, operators, layer, own)))
    place = torch.cat([torch.full((len(position),), at) for at, position, *_ in parts])
    position, adjoint, constant, total = (torch.cat(column) for column in list(zip(*parts, strict=True))[1:])
    return FeatureTargets(
        place=place, position=position.cpu(), adjoint=adjoint, constant=constant, total=total
    )


def _read(
    hosted: HostedModel,
    operators: FrozenOperators,
    layer: ActiveLayer,
    own: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return position, adjoint, constant and total of some of a layer's active features."""
    info = layer.info
    own = own.to(layer.index.device)
    position, index = layer.position[own], layer.index[own]
    if info.kind is LayerKind.NEURONS:
        return position, *_read_neurons(operators, info.layer, position, index)
    direction = encoder_directions(hosted, operators, layer, position, index)
    total = (direction * clean_value(operators, info.site_in)[position]).sum(-1)
    constant, norm = torch.zeros_like(total), operators.layers[info.layer].mlp_norm
    if is_linearised(info):
        direction, constant = through_mlp(operators.layers[info.layer], direction, position)
    elif info.site_in.kind is not SiteKind.MLP_IN:
        return position, direction, constant, total
    constant = constant if norm.bias is None else constant + direction @ norm.bias
    return position, norm.pull_back(direction, position), constant, total


def _read_neurons(
    operators: FrozenOperators, layer: int, position: Tensor, index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return adjoint, constant and total of neurons, whose activations the half rule takes apart."""
    rows = torch.full((len(index),), layer)
    targets = neuron_targets(operators, rows, position, index, "relp_half")
    norm, constant = operators.layers[layer].mlp_norm, targets.constant
    constant = constant if norm.bias is None else constant + targets.direction @ norm.bias
    return norm.pull_back(targets.direction, position), constant, targets.total


def encoder_directions(
    hosted: HostedModel,
    operators: FrozenOperators,
    layer: ActiveLayer,
    position: Tensor,
    index: Tensor,
) -> Tensor:
    """Return what features, active or not, multiply the activation they read by, `(n, d_model)`.

    Args:
        hosted: The model with its sets.
        operators: The frozen network.
        layer: A layer of a set, with what it divides its input by.
        position: int64 `(n,)`; a scale of the input is that of the clean prompt there. Its mean is not: where
            the set takes it out, directions have none.
        index: int64 `(n,)`.
    """
    with opened(hosted, layer.ref.replacement, [layer.ref.layer]) as resident, torch.inference_mode():
        direction = resident[layer.ref.layer].encoders(index.tolist()).to(operators.dtype)
    return direction / layer.read_scale[position, None].to(operators.dtype)
