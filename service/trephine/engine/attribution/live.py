"""The exact derivative of a block at the clean activations: nothing frozen, no autograd.

The route through queries and keys is written out: softmax, soft cap, rotary positions, per-head norms and
projections, for every verified architecture. Adjoints are `(n_pos, d_model)`, of one target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trephine.domain.errors import UnsupportedArchitectureError
from trephine.engine.attribution.operators import FrozenLayer
from trephine.engine.models.products import product

_STEP = 1e-5
"""Of central differences in float64: exact to some 1e-10 for smooth activations."""


def live_mlp_adjoint(layer: FrozenLayer, by_neuron: Tensor) -> Tensor:
    """Carry `(n_pos, d_mlp)` through the MLP and its norm to the residual stream that it reads."""
    return layer.mlp_norm.pull_back_live(mlp_read_adjoint(layer, by_neuron))


def mlp_read_adjoint(layer: FrozenLayer, by_neuron: Tensor) -> Tensor:
    """Carry `(n_pos, d_mlp)` to what the MLP reads, `(n_pos, d_model)`, by the exact slope of its neurons."""
    mlp, dtype, phi = layer.block.mlp, by_neuron.dtype, layer.block.mlp.activation
    if layer.gate is None or mlp.W_gate is None:
        return product(by_neuron * _slope(layer, layer.read), mlp.W_in.to(dtype))
    by_gate = by_neuron * _slope(layer, layer.gate) * layer.read
    by_read = by_neuron * phi(layer.gate)
    return product(by_gate, mlp.W_gate.to(dtype)) + product(by_read, mlp.W_in.to(dtype))


def _slope(layer: FrozenLayer, x: Tensor) -> Tensor:
    """Return phi'(x)."""
    phi, wide = layer.block.mlp.activation, x.double()
    return ((phi(wide + _STEP) - phi(wide - _STEP)) / (2 * _STEP)).to(x.dtype)


def live_attention_adjoint(layer: FrozenLayer, adjoint: Tensor) -> Tensor:
    """Return what the residual stream before the block receives through attention: values and patterns."""
    return live_heads_adjoint(layer, by_heads(layer, adjoint))


def by_heads(layer: FrozenLayer, adjoint: Tensor) -> Tensor:
    """Carry `(n_pos, d_model)` of attention's output to mixed values, `(n_pos, n_heads * d_head)`."""
    post = layer.attention_post_norm
    out = adjoint if post is None else post.pull_back_live(adjoint)
    return product(out, layer.block.attention.W_O.to(adjoint.dtype).flatten(1))


def live_heads_adjoint(layer: FrozenLayer, by_mixed: Tensor) -> Tensor:
    """Carry `(n_pos, n_heads * d_head)` of mixed values to the stream before the block, patterns included."""
    attention, dtype = layer.block.attention, by_mixed.dtype
    kv, group = attention.n_kv_heads, attention.group
    norm = layer.attention_norm
    read = norm.normed * norm.gain if norm.bias is None else norm.normed * norm.gain + norm.bias
    mixed = by_mixed.unflatten(1, (kv * group, -1)).transpose(0, 1)  # (n_heads, n_pos, d_head)
    W_V = attention.W_V.to(dtype)
    value = read @ W_V.transpose(1, 2)  # (kv, n_pos, d_head)
    if attention.b_V is not None:
        value = value + attention.b_V.to(dtype)[:, None]
    by_value = (layer.pattern.transpose(1, 2) @ mixed).unflatten(0, (kv, group)).sum(1)
    by_pattern = mixed @ value.repeat_interleave(group, 0).transpose(1, 2)
    by_score = layer.pattern * (by_pattern - (layer.pattern * by_pattern).sum(-1, keepdim=True))
    through = (by_value @ W_V).sum(0) + _score_adjoint(layer, read, by_score)
    return norm.pull_back_live(through)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Projection:
    """Queries or keys of one layer: `rotate(norm(weight x + bias))`."""

    weight: Tensor
    """`(heads, d_head, d_model)`."""
    plain: Tensor
    """`(heads, n_pos, d_head)`, before norm and rotation."""
    norm: Any | None
    rotation: tuple[Tensor, Tensor] | None

    def forward(self) -> Tensor:
        """Return what enters the scores, `(heads, n_pos, d_head)`."""
        normed = self.plain if self.norm is None else self.plain * self._scale() * self._gain()
        return normed if self.rotation is None else rotate(normed, *self.rotation)

    def pull_back(self, cotangent: Tensor) -> Tensor:
        """Carry `(heads, n_pos, d_head)` back to the normed residual stream, `(n_pos, d_model)`."""
        if self.rotation is not None:
            cotangent = rotate(cotangent, *self.rotation, back=True)
        if self.norm is not None:
            scaled, normed = cotangent * self._gain(), self.plain * self._scale()
            cotangent = (scaled - normed * (scaled * normed).mean(-1, keepdim=True)) * self._scale()
        return (cotangent @ self.weight).sum(0)

    def _gain(self) -> Tensor:
        norm: Any = self.norm
        gain: Tensor = norm.weight.to(self.plain.dtype)
        return gain

    def _scale(self) -> Tensor:
        norm: Any = self.norm
        return torch.rsqrt(self.plain.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)


def _score_adjoint(layer: FrozenLayer, read: Tensor, by_score: Tensor) -> Tensor:
    """Carry `(n_heads, n_query, n_key)` through soft cap, queries and keys to what attention reads."""
    module: Any = layer.block.attention.module
    kv, group = layer.block.attention.n_kv_heads, layer.block.attention.group
    queries, keys = _projections(layer, read)
    query, key = queries.forward(), keys.forward().repeat_interleave(group, 0)
    softcap = getattr(module, "attn_logit_softcapping", None)
    if softcap is not None:
        scores = query @ key.transpose(1, 2) * module.scaling
        by_score = by_score * (1 - torch.tanh(scores / softcap).square())
    by_score = by_score * module.scaling
    by_key = (by_score.transpose(1, 2) @ query).unflatten(0, (kv, group)).sum(1)
    return queries.pull_back(by_score @ key) + keys.pull_back(by_key)


def score_gradient(layer: FrozenLayer, head: int, query: int, key: int) -> Tensor:
    """Return the exact derivative `(n_pos, d_model)` of a score before its soft cap by the stream.

    Nonzero at query and key alone.
    """
    module: Any = layer.block.attention.module
    group, norm = layer.block.attention.group, layer.attention_norm
    read = norm.normed * norm.gain if norm.bias is None else norm.normed * norm.gain + norm.bias
    queries, keys = _projections(layer, read)
    by_query, by_key = torch.zeros_like(queries.plain), torch.zeros_like(keys.plain)
    by_query[head, query] = module.scaling * keys.forward()[head // group, key]
    by_key[head // group, key] = module.scaling * queries.forward()[head, query]
    return norm.pull_back_live(queries.pull_back(by_query) + keys.pull_back(by_key))


def _projections(layer: FrozenLayer, read: Tensor) -> tuple[_Projection, _Projection]:
    module: Any = layer.block.attention.module
    kv, heads = layer.block.attention.n_kv_heads, layer.block.attention.n_heads
    weights = query_key(module, heads, kv)
    parts = []
    for (weight, bias), norm in zip(weights, ("q_norm", "k_norm"), strict=True):
        wide = weight.detach().to(read.dtype)
        plain = read @ wide.transpose(1, 2)
        if bias is not None:
            plain = plain + bias.detach().to(read.dtype)[:, None]
        parts.append(
            _Projection(weight=wide, plain=plain, norm=getattr(module, norm, None), rotation=layer.rotation)
        )
    return parts[0], parts[1]


def query_key(module: Any, heads: int, kv: int) -> list[tuple[Tensor, Tensor | None]]:
    """Find W_Q, b_Q, W_K, b_K, per head, in separate, stacked (GPT-2) or interleaved (GPT-NeoX) form."""
    if hasattr(module, "q_proj"):
        pairs = ((module.q_proj, heads), (module.k_proj, kv))
        return [(p.weight.unflatten(0, (n, -1)), _split(p.bias, n)) for p, n in pairs]
    if hasattr(module, "c_attn"):
        weights, biases = module.c_attn.weight.T.chunk(3), module.c_attn.bias.chunk(3)
        return [(weights[k].unflatten(0, (heads, -1)), _split(biases[k], heads)) for k in (0, 1)]
    if hasattr(module, "query_key_value"):
        fused = module.query_key_value
        weight = fused.weight.unflatten(0, (heads, 3, -1))
        bias = None if fused.bias is None else fused.bias.unflatten(0, (heads, 3, -1))
        return [(weight[:, k], None if bias is None else bias[:, k]) for k in (0, 1)]
    raise UnsupportedArchitectureError(f"{type(module).__name__}: no query and key projection is known")


def _split(bias: Tensor | None, heads: int) -> Tensor | None:
    return None if bias is None else bias.unflatten(0, (heads, -1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
    """Apply rotary positions to the first dimensions of every head, or their transpose."""
    width = cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    if back:
        first, second = (turned * sin).chunk(2, -1)
        turned = turned * cos + torch.cat([second, -first], -1)
    else:
        first, second = turned.chunk(2, -1)
        turned = turned * cos + torch.cat([-second, first], -1) * sin
    return functional.pad(turned, (0, rest.shape[-1])) + functional.pad(rest, (width, 0))
