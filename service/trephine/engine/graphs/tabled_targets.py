"""Read-outs of many features at once, all on what MLPs read: `feature_targets` in few calls."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.engine.attribution.operators import FrozenOperators
from trephine.engine.attribution.places import MLP, PER_BLOCK
from trephine.engine.graphs.actives import ActiveFeatures
from trephine.engine.graphs.targets import FeatureTargets
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.sets import opened


@dataclass(frozen=True, slots=True, kw_only=True)
class TabledReads:
    """What features of one prompt read, layers of the sets stacked in their order."""

    hosted: HostedModel
    active: ActiveFeatures
    position: Tensor
    """int64 `(n_cells,)`, on the rows' device."""
    index: Tensor
    """int64 `(n_cells,)`, likewise."""
    read: Tensor
    """`(n_layers, n_pos, d_model)`, the clean input."""
    read_scale: Tensor
    """`(n_layers, n_pos)`, what it is divided by before an encoder reads it."""
    gain: Tensor
    """`(n_layers, d_model)`, of the norm that gives it."""
    bias: Tensor | None
    """`(n_layers, d_model)`."""
    scale: Tensor
    """`(n_layers, n_pos, 1)`."""
    centred: bool

    def targets(self, cells: Tensor) -> FeatureTargets:
        """Explain the pre-activations of active features, `cells (n,)` on the CPU, in any order.

        Returns:
            Them, from the top down, as given within a layer.
        """
        order = self.active.owner[cells].argsort(descending=True, stable=True)
        cells = cells[order]
        rows = self.active.owner[cells]
        owners, counts = rows.unique_consecutive(return_counts=True)
        cell, row = torch.stack([cells, rows]).to(self.read.device)
        position, index = self.position[cell], self.index[cell]
        parts = []
        for owner, own in zip(owners.tolist(), index.split(counts.tolist()), strict=True):
            ref = self.active.layers[owner].ref
            with opened(self.hosted, ref.replacement, [ref.layer]) as resident:
                parts.append(resident[ref.layer].encoders(own).to(self.read.dtype))
        direction = torch.cat(parts) / self.read_scale[row, position, None]  # (n, d_model)
        adjoint = direction * self.gain[row] * self.scale[row, position]
        if self.centred:
            adjoint = adjoint - adjoint.mean(-1, keepdim=True)
        zeros = direction.new_zeros(len(direction))
        return FeatureTargets(
            place=self.active.layer[cells] * PER_BLOCK + MLP,
            position=self.active.position[cells],
            adjoint=adjoint,
            constant=zeros if self.bias is None else (direction * self.bias[row]).sum(-1),
            total=(direction * self.read[row, position]).sum(-1),
        )


def tabled_reads(hosted: HostedModel, operators: FrozenOperators, active: ActiveFeatures) -> TabledReads:
    """Stack what the layers of sets read, which must all read what MLPs read."""
    norms = [operators.layers[layer.info.layer].mlp_norm for layer in active.layers]
    biases = [norm.bias for norm in norms if norm.bias is not None]
    gain, bias = torch.stack([norm.gain for norm in norms]), torch.stack(biases) if biases else None
    read = torch.stack([norm.normed for norm in norms]).mul_(gain[:, None])
    return TabledReads(
        hosted=hosted,
        active=active,
        position=torch.cat([layer.position for layer in active.layers]),
        index=torch.cat([layer.index for layer in active.layers]),
        read=read if bias is None else read.add_(bias[:, None]),
        read_scale=torch.stack([layer.read_scale for layer in active.layers]).to(operators.dtype),
        gain=gain,
        bias=bias,
        scale=torch.stack([norm.scale for norm in norms]),
        centred=norms[0].centred,
    )
