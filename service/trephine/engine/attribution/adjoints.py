"""Exact vector-Jacobian products of the frozen network, without autograd, for many targets at once.

An adjoint `(n_targets, n_pos, d_model)` holds every target's derivative by the residual stream at every
position up to the batch's last; beyond a target's own position it is zero. Targets are sorted from the top
layer down, so that those alive at a layer are a prefix. A rectangle costs a few rows that stay zero, and
saves all gathering: every step below is a matrix product over contiguous rows. Sums run in the operators'
dtype.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trephine.engine.attribution.operators import FrozenLayer, FrozenNorm
from trephine.engine.models.products import add_product, is_wide, product

_KEYS = 128
"""Key positions per product with the pattern; earlier queries do not see them and are left out."""
_LONG = 64
"""Positions from which on values are summed over queries for all targets in one product."""


def new_adjoint(embedding: Tensor, positions: Tensor) -> Tensor:
    """Return zeros for targets at `positions (n_targets,)`, as long as the longest causal cone.

    Args:
        embedding: `(n_pos, d_model)`; gives dtype, device and width.
        positions: int64, on the CPU, at least one.
    """
    return embedding.new_zeros(len(positions), int(positions.max()) + 1, embedding.shape[1])


def mlp_write_adjoint(layer: FrozenLayer, adjoint: Tensor, bias: Tensor) -> Tensor:
    """Carry the adjoint `(n, n_pos, d_model)` back through a post-norm to the down projection's output.

    Args:
        layer: The frozen block.
        adjoint: Of the residual stream after the block.
        bias: `(n,)`; what the down projection's and the post-norm's biases add is added here.

    Returns:
        `(n, n_pos, d_model)`.
    """
    norm, back = layer.mlp_post_norm, adjoint
    if norm is not None:
        if norm.bias is not None:
            bias += (adjoint @ norm.bias).sum(1)
        back = norm.pull_back_all(adjoint)
    if layer.block.mlp.b_down is not None:
        bias += (back @ layer.block.mlp.b_down.to(back.dtype)).sum(1)
    return back


def attention_adjoint(
    layer: FrozenLayer, adjoint: Tensor, bias: Tensor, *, onto: Tensor | None = None
) -> Tensor:
    """Return what the residual stream before the block receives through attention, pattern frozen.

    Gains and centring of both norms are folded into the output and value matrices and their scales into the
    pattern, so that nothing passes over the rows but products.

    Args:
        layer: The frozen block.
        adjoint: `(n, n_pos, d_model)`, contiguous: of the stream that attention's output is added to.
        bias: `(n,)`; contributions of all attention constants are added here.
        onto: `(n, n_pos, d_model)`, contiguous; what is received is added to it, in place. May be `adjoint`.

    Returns:
        `(n, n_pos, d_model)`: `onto`, or what is received alone.
    """
    _add_output_biases(layer, adjoint, bias)
    value = _through_pattern(layer, adjoint)  # (n, n_pos, n_kv_heads, d_head)
    _add_value_biases(layer, value, bias)
    rows, matrix = value.flatten(2).flatten(0, 1), _value_matrix(layer, adjoint.dtype)
    if onto is None:
        return product(rows, matrix).view_as(adjoint)
    add_product(onto.view(-1, onto.shape[-1]), rows, matrix)
    return onto


def _through_pattern(layer: FrozenLayer, adjoint: Tensor) -> Tensor:
    """Carry `(n, n_pos, d_model)` back to `(n, n_pos, n_kv_heads, d_head)`: values times the norm's scale.

    Query heads that share a value head are one matrix product with a longer inner axis.
    """
    attention, (n, n_pos, _) = layer.block.attention, adjoint.shape
    pattern = _scaled_pattern(layer, n_pos)  # (n_kv_heads, n_pos * group, n_key)
    value = adjoint.new_empty(n, n_pos, attention.n_kv_heads, attention.d_head)
    for head, mixed in enumerate(_mixed(layer, adjoint)):
        _sum_at_keys(value[:, :, head], pattern[head], mixed, attention.group)
    return value


def _sum_at_keys(value: Tensor, pattern: Tensor, mixed: Tensor, group: int) -> None:
    """Sum over the queries of one value head, a block of keys at a time: no query looks ahead.

    Args:
        value: `(n, n_key, d_head)`, written.
        pattern: `(n_query * group, n_key)`.
        mixed: `(n, n_query * group, d_head)`.
        group: Query heads that share the value head.
    """
    n, (_, n_key) = len(mixed), pattern.shape
    # Columns of all targets are rows of one product: oneDNN has no batched one. Short ones do not pay for it.
    by_column = mixed.transpose(1, 2).flatten(0, 1) if n_key >= _LONG and is_wide(mixed) else None
    for first in range(0, n_key, _KEYS):
        keys, seen = slice(first, first + _KEYS), slice(first * group, None)
        if by_column is None:
            value[:, keys] = torch.bmm(pattern[seen, keys].T.expand(n, -1, -1), mixed[:, seen])
        else:
            summed = product(by_column[:, seen], pattern[seen, keys])  # (n * d_head, n_keys)
            value[:, keys] = summed.unflatten(0, (n, -1)).transpose(1, 2)


def _mixed(layer: FrozenLayer, adjoint: Tensor) -> Iterator[Tensor]:
    """Yield, per value head, the adjoint of its query heads' outputs, `(n, n_pos * group, d_head)`."""
    attention, n = layer.block.attention, len(adjoint)
    matrix, rows = _output_matrix(layer, adjoint.dtype), adjoint.flatten(0, 1)
    if attention.group == 1:
        yield from product(rows, matrix).view(n, -1, attention.n_heads, attention.d_head).unbind(2)
        return
    for columns in matrix.split(attention.group * attention.d_head, dim=1):
        yield product(rows, columns).view(n, -1, attention.d_head)


def _output_matrix(layer: FrozenLayer, dtype: torch.dtype) -> Tensor:
    """Return `(d_model, n_heads * d_head)`, through a post-norm but for its scale."""
    matrix = layer.block.attention.W_O.to(dtype).flatten(1)
    return matrix if layer.attention_post_norm is None else _behind(layer.attention_post_norm, matrix)


def _behind(norm: FrozenNorm, matrix: Tensor) -> Tensor:
    """Fold a norm's gain and centring into what reads its cotangent, `(d_model, ...)`."""
    matrix = matrix - matrix.mean(0, keepdim=True) if norm.centred else matrix
    return norm.gain[:, None] * matrix


def _value_matrix(layer: FrozenLayer, dtype: torch.dtype) -> Tensor:
    """Return `(n_kv_heads * d_head, d_model)`, through the block's norm but for its scale."""
    return layer.attention_norm.fold(layer.block.attention.W_V.to(dtype).flatten(0, 1))


def _scaled_pattern(layer: FrozenLayer, n_pos: int) -> Tensor:
    """Return `(n_kv_heads, n_query * group, n_key)` times the norms' scales at query and key."""
    attention, post = layer.block.attention, layer.attention_post_norm
    pattern = layer.pattern[:, :n_pos, :n_pos].unflatten(0, (attention.n_kv_heads, attention.group))
    scaled = pattern.new_empty(attention.n_kv_heads, n_pos, attention.group, n_pos)
    torch.mul(pattern.transpose(1, 2), layer.attention_norm.scale[:n_pos, 0], out=scaled)
    if post is not None:
        scaled *= post.scale[:n_pos, :, None]
    return scaled.flatten(1, 2)


def _add_output_biases(layer: FrozenLayer, adjoint: Tensor, bias: Tensor) -> None:
    """Add what the output projection's and the post-norm's biases contribute."""
    own, post = layer.block.attention.b_O, layer.attention_post_norm
    if post is not None and post.bias is not None:
        bias += (adjoint @ post.bias).sum(1)
    if own is None:
        return
    own = own.to(adjoint.dtype)
    if post is None:
        bias += (adjoint @ own).sum(1)
    else:
        bias += (adjoint @ _behind(post, own[:, None])[:, 0]) @ post.scale[: adjoint.shape[1], 0]


def _add_value_biases(layer: FrozenLayer, value: Tensor, bias: Tensor) -> None:
    """Add what the values' bias and the norm's bias contribute; `value` carries the norm's scale."""
    attention, norm = layer.block.attention, layer.attention_norm
    read: list[Tensor] = []
    if attention.b_V is not None:
        read.append(attention.b_V.to(value.dtype))
    if norm.bias is not None:
        read.append(attention.W_V.to(value.dtype) @ norm.bias)
    if read:
        at_keys = value.flatten(2) @ sum(read[1:], read[0]).flatten()  # (n, n_key)
        bias += at_keys @ norm.scale[: value.shape[1], 0].reciprocal()
