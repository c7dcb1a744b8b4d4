"""Exact vector-Jacobian products of the frozen network, without autograd, for many targets at once.

Row `(target, position)` of an adjoint is the target's derivative by the residual stream at that position.
Rows are packed: a target at position p owns p + 1 rows (its causal cone), and targets are sorted from the
top layer down, so that the rows alive at a layer are a prefix. All sums run in the operators' dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.engine.operators import FrozenLayer, FrozenNorm

_KEYS = 128
"""Key positions per product with the pattern; earlier queries do not see them and are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """Where the rows of every target are."""

    target: Tensor
    """int64 `(n_rows,)`: the target of a row."""
    position: Tensor
    """int64 `(n_rows,)`: the position of a row."""
    last: Tensor
    """int64 `(n_targets,)`: the row at the target's own position."""
    ends: tuple[int, ...]
    """`ends[k]` rows belong to the first k targets."""
    n_pos: int
    """Positions of the longest cone."""

    @property
    def n_targets(self) -> int:
        """Number of targets."""
        return len(self.ends) - 1

    @property
    def n_rows(self) -> int:
        """Number of packed rows."""
        return self.ends[-1]

    def add_to_targets(self, sums: Tensor, values: Tensor) -> None:
        """Add row values `(n,)` of the first n rows to their targets' `sums (n_targets,)`."""
        sums.index_add_(0, self.target[: values.shape[0]], values)


def pack(positions: Tensor, device: torch.device) -> Packing:
    """Lay out the causal cones of targets at `positions (n_targets,)`, on the CPU; rows are on `device`."""
    counts = positions + 1
    ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    target = torch.repeat_interleave(torch.arange(len(counts)), counts)
    position = torch.arange(int(ends[-1])) - ends[target]
    return Packing(
        target=target.to(device),
        position=position.to(device),
        last=(ends[1:] - 1).to(device),
        ends=tuple(int(end) for end in ends),
        n_pos=int(counts.max()),
    )


def mlp_write_adjoint(layer: FrozenLayer, adjoint: Tensor, packing: Packing, bias: Tensor) -> Tensor:
    """Carry the adjoint `(n, d_model)` back through a post-norm to the down projection's output.

    Args:
        layer: The frozen block.
        adjoint: Of the residual stream after the block, the first n rows.
        packing: The rows.
        bias: `(n_targets,)`; what the down projection's and the post-norm's biases add is added here.

    Returns:
        `(n, d_model)`.
    """
    position = packing.position[: adjoint.shape[0]]
    back = _through_norm(layer.mlp_post_norm, adjoint, position, packing, bias)
    if layer.block.mlp.b_down is not None:
        packing.add_to_targets(bias, back @ layer.block.mlp.b_down.to(back.dtype))
    return back


def attention_adjoint(layer: FrozenLayer, adjoint: Tensor, packing: Packing, bias: Tensor) -> Tensor:
    """Return what the residual stream before the block receives through attention, pattern frozen.

    Args:
        layer: The frozen block.
        adjoint: Of the residual stream that attention's output is added to, `(n, d_model)`.
        packing: The rows; the first n are meant.
        bias: `(n_targets,)`; contributions of all attention constants are added here.

    Returns:
        `(n, d_model)`, to be added to the adjoint.
    """
    attention, dtype = layer.block.attention, adjoint.dtype
    rows = adjoint.shape[0]
    position = packing.position[:rows]
    out = _through_norm(layer.attention_post_norm, adjoint, position, packing, bias)
    if attention.b_O is not None:
        packing.add_to_targets(bias, out @ attention.b_O.to(dtype))
    mixed = out @ attention.W_O.to(dtype).flatten(1)  # (n, n_heads * d_head)
    value = _through_pattern(layer, mixed, packing)
    if attention.b_V is not None:
        packing.add_to_targets(bias, value @ attention.b_V.to(dtype).flatten())
    read = value @ attention.W_V.to(dtype).flatten(0, 1)
    return _through_norm(layer.attention_norm, read, position, packing, bias)


def _through_norm(
    norm: FrozenNorm | None, cotangent: Tensor, position: Tensor, packing: Packing, bias: Tensor
) -> Tensor:
    if norm is None:
        return cotangent
    if norm.bias is not None:
        packing.add_to_targets(bias, cotangent @ norm.bias)
    return norm.pull_back(cotangent, position)


def _through_pattern(layer: FrozenLayer, mixed: Tensor, packing: Packing) -> Tensor:
    """Carry `(n, n_heads * d_head)` at query positions back to the values `(n, n_kv_heads * d_head)`.

    Query heads that share a value head are one matrix product with a longer inner axis.
    """
    attention, rows, n_pos = layer.block.attention, mixed.shape[0], packing.n_pos
    kv, group = attention.n_kv_heads, attention.group
    target, position = packing.target[:rows], packing.position[:rows]
    n_targets = int(target[-1]) + 1
    heads = mixed.unflatten(1, (kv, group, -1))
    padded = mixed.new_zeros(n_pos, n_targets, kv, group, heads.shape[-1])
    padded[position, target] = heads
    queries = padded.permute(2, 0, 3, 1, 4).flatten(3)  # (kv, n_query, group, n_targets * d_head)
    pattern = layer.pattern[:, :n_pos, :n_pos].unflatten(0, (kv, group)).transpose(1, 2)
    keys = torch.cat(
        [
            pattern[:, first:, :, first : first + _KEYS].flatten(1, 2).transpose(1, 2)
            @ queries[:, first:].flatten(1, 2)
            for first in range(0, n_pos, _KEYS)  # no query looks ahead
        ],
        dim=1,
    ).unflatten(2, (n_targets, -1))  # (kv, n_key, n_targets, d_head)
    return keys[:, position, target].transpose(0, 1).flatten(1)
