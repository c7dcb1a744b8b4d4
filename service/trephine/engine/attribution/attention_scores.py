"""The scores of one attention head as a bilinear form of the residual stream, norm scales frozen.

`score(q, k) = scaling * R_q N_q(W_Q n(x_q) + b_Q) . R_k N_k(W_K n(x_k) + b_K)`: n is the block's norm, N
that of queries and keys (Qwen3), R the rotary positions. With the scales of n and N held at their clean
values every summand of a stream has a query and a key vector of its own, and the score is the sum over all
pairs (Kamath et al. 2025). A soft cap comes after, a sliding window decides what is seen: both stay apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trephine.domain.errors import InternalError
from trephine.engine.attribution.live import query_key, rotate
from trephine.engine.attribution.operators import FrozenLayer, FrozenNorm

_PATTERN_TOLERANCE = {torch.bfloat16: 5e-2, torch.float16: 5e-3}
"""Largest difference of a weight recomputed in float32 from the model's own; 1e-4 in wider dtypes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadProjection:
    """What turns the residual stream into one head's queries, or its keys."""

    weight: Tensor
    """`(d_head, d_model)`."""
    bias: Tensor | None
    """`(d_head,)`."""
    norm: FrozenNorm
    own_scale: Tensor | None
    """`(n_pos, d_head)`, gain times frozen scale of the norm of queries or keys; None without one."""
    rotation: tuple[Tensor, Tensor] | None

    def project(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """Carry summands of the stream `(n, d_model)` at `positions (n,)` to `(n, d_head)`; linear."""
        return self._finish(self.norm.push(vectors, positions) @ self.weight.T, positions)

    def constant(self, positions: Tensor) -> Tensor:
        """What biases of norm and projection add, `(n, d_head)`."""
        added = self.weight.new_zeros(len(positions), self.weight.shape[0])
        if self.norm.bias is not None:
            added = added + self.weight @ self.norm.bias
        if self.bias is not None:
            added = added + self.bias
        return self._finish(added, positions)

    def pull_back(self, cotangent: Tensor, positions: Tensor) -> Tensor:
        """Carry `(n, d_head)` back to the stream `(n, d_model)`: the transpose of `project`."""
        if self.rotation is not None:
            cotangent = rotate(cotangent, *self._turn(positions), back=True)
        if self.own_scale is not None:
            cotangent = cotangent * self.own_scale[positions]
        return self.norm.pull_back(cotangent @ self.weight, positions)

    def _finish(self, plain: Tensor, positions: Tensor) -> Tensor:
        normed = plain if self.own_scale is None else plain * self.own_scale[positions]
        return normed if self.rotation is None else rotate(normed, *self._turn(positions))

    def _turn(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        if self.rotation is None:
            raise ValueError("this projection has no rotary positions")
        return self.rotation[0][positions], self.rotation[1][positions]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadScores:
    """One head of one layer on one prompt."""

    queries: HeadProjection
    keys: HeadProjection
    query: Tensor
    """`(n_pos, d_head)`, as they enter the scores."""
    key: Tensor
    """`(n_pos, d_head)`."""
    scaling: float
    softcap: float | None
    window: int | None
    """Keys that a query sees, itself included; None: all before it."""

    def visible(self, query: int) -> Tensor:
        """int64 `(n_keys,)`, positions that a query sees, ascending."""
        first = 0 if self.window is None else max(0, query + 1 - self.window)
        return torch.arange(first, query + 1, device=self.key.device)

    def scores(self, query: int) -> Tensor:
        """`(n_keys,)`, the query's scores over visible keys, before a soft cap."""
        return self.scaling * self.key[self.visible(query)] @ self.query[query]


def head_scores(layer: FrozenLayer, head: int) -> HeadScores:
    """Describe one head's scores on the captured prompt."""
    attention = layer.block.attention
    module: Any = attention.module
    stream, dtype = layer.resid_pre, layer.resid_pre.dtype
    read = layer.attention_norm.apply(stream)
    projections, vectors = [], []
    numbers = (head, head // attention.group)
    pairs = query_key(module, attention.n_heads, attention.n_kv_heads)
    for (weights, biases), name, number in zip(pairs, ("q_norm", "k_norm"), numbers, strict=True):
        weight = weights[number].detach().to(dtype)
        bias = None if biases is None else biases[number].detach().to(dtype)
        plain = read @ weight.T if bias is None else read @ weight.T + bias
        projection = HeadProjection(
            weight=weight,
            bias=bias,
            norm=layer.attention_norm,
            own_scale=_own_scale(getattr(module, name, None), plain),
            rotation=layer.rotation,
        )
        projections.append(projection)
        vectors.append(projection._finish(plain, torch.arange(len(plain), device=plain.device)))
    return HeadScores(
        queries=projections[0],
        keys=projections[1],
        query=vectors[0],
        key=vectors[1],
        scaling=float(module.scaling),
        softcap=getattr(module, "attn_logit_softcapping", None),
        window=getattr(module, "sliding_window", None),
    )


def check_pattern(layer: FrozenLayer, head: int, query: int, visible: Tensor, weights: Tensor) -> None:
    """Hold recomputed weights `(n_keys,)` to the pattern that the model had.

    Raises:
        InternalError: If they differ by more than rounding explains.
    """
    own = torch.zeros_like(layer.pattern[head, query])
    own[visible] = weights.to(own.dtype)
    tolerance = _PATTERN_TOLERANCE.get(layer.block.attention.W_V.dtype, 1e-4)
    worst = float((own - layer.pattern[head, query]).abs().max())
    if not worst <= tolerance:
        raise InternalError(
            f"the weights of layer {layer.block.layer}, head {head} recomputed from queries and keys differ "
            f"from the model's by {worst:.2e}; report its configuration",
            deviation=worst,
        )


def _own_scale(norm: Any | None, plain: Tensor) -> Tensor | None:
    if norm is None:
        return None
    scale = torch.rsqrt(plain.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    gain: Tensor = norm.weight.detach().to(plain.dtype)
    return scale * gain
