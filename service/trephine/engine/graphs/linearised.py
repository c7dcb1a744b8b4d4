"""The MLP below a dictionary on its output, linearised: `relp_half` of every neuron, summed (He et al. 2024).

`e . mlp_out = sum_n (e . W_down_n) a_n + constants` and `a_n = by_gate g_n + by_read u_n` (`half_rule`), so
that rows sum to what they explain, exactly; that an edge is what removing its source does is an estimate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trephine.domain.replacements import LayerKind, ReplacementLayerInfo
from trephine.domain.sites import SiteKind
from trephine.engine.attribution.live import live_mlp_adjoint
from trephine.engine.attribution.operators import FrozenLayer
from trephine.engine.attribution.places import MLP, PER_BLOCK, place_of
from trephine.engine.attribution.readouts import half_rule


def is_linearised(info: ReplacementLayerInfo) -> bool:
    """True for a dictionary that reads an MLP's output, and so the MLP itself."""
    return info.site_in.kind is SiteKind.MLP_OUT


def is_estimated(info: ReplacementLayerInfo) -> bool:
    """True if edges into a layer's features go by the half rule: dictionaries on MLP outputs, and neurons."""
    return is_linearised(info) or info.kind is LayerKind.NEURONS


def read_place(info: ReplacementLayerInfo) -> int:
    """Return the place of the stream that a layer's features read, if need be through the MLP below them."""
    return PER_BLOCK * info.layer + MLP if is_linearised(info) else place_of(info.site_in)


def through_mlp(layer: FrozenLayer, direction: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """Carry directions on the MLP's output back to what the MLP reads.

    Args:
        layer: The block.
        direction: `(n, d_model)`, on what the MLP adds to the stream.
        position: int64 `(n,)`.

    Returns:
        Directions `(n, d_model)` on the norm's output, and what constants add `(n,)` without the norm's.
    """
    mlp, post, dtype = layer.block.mlp, layer.mlp_post_norm, direction.dtype
    constant = direction.new_zeros(len(direction))
    written = direction
    if post is not None:
        constant = constant if post.bias is None else constant + direction @ post.bias
        written = post.pull_back(direction, position)
    if mlp.b_down is not None:
        constant = constant + written @ mlp.b_down.to(dtype)
    by_neuron = written @ mlp.W_down.to(dtype)  # (n, d_mlp)
    by_gate, by_read = half_rule(layer, position)
    read = by_neuron * by_read
    found = read @ mlp.W_in.to(dtype)
    constant = constant if mlp.b_in is None else constant + read @ mlp.b_in.to(dtype)
    if mlp.W_gate is not None and by_gate is not None:
        gate = by_neuron * by_gate
        found = found + gate @ mlp.W_gate.to(dtype)
        constant = constant if mlp.b_gate is None else constant + gate @ mlp.b_gate.to(dtype)
    return found, constant


def live_output_adjoint(layer: FrozenLayer, direction: Tensor, position: int) -> Tensor:
    """Return the exact derivative `(d_model,)` of `direction . mlp_out` at a position by the stream there."""
    cotangent = torch.zeros_like(layer.mlp_out)
    cotangent[position] = direction
    post = layer.mlp_post_norm
    written = cotangent if post is None else post.pull_back_live(cotangent)
    return live_mlp_adjoint(layer, written @ layer.block.mlp.W_down.to(written.dtype))[position]
