"""Attention of our own, bit-equal to eager, whose patterns can be read and replaced.

Registered with transformers' attention *and* mask interfaces: without the mask function transformers
passes no mask and causality is silently lost. State lives in a context variable for the length of one
forward pass, never on modules.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

IMPLEMENTATION = "trephine"


@dataclass(slots=True)
class PatternTape:
    """What is recorded of, or imposed on, the attention patterns of one forward pass.

    Patterns are `(rows, n_heads, n_query, n_key)`, probabilities, by layer.
    """

    record: bool = False
    recorded: dict[int, Tensor] = field(default_factory=dict)
    imposed: dict[int, Tensor] = field(default_factory=dict)
    """Layers whose pattern is replaced for every row."""
    imposed_rows: dict[int, Tensor] = field(default_factory=dict)
    """Optional bool `(rows,)` per layer: only these rows are replaced."""


_TAPE: ContextVar[PatternTape | None] = ContextVar("trephine_pattern_tape", default=None)


@contextmanager
def pattern_tape(tape: PatternTape) -> Iterator[PatternTape]:
    """Use a tape for the forward passes inside. Must not span a quantum (a `yield` to the loop)."""
    token = _TAPE.set(tape)
    try:
        yield tape
    finally:
        _TAPE.reset(token)


def attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **unused: Any,
) -> tuple[Tensor, Tensor]:
    """Attend exactly as transformers' eager attention does, reading and replacing patterns by tape.

    Args:
        module: The attention module; `layer_idx` names the layer.
        query: `(rows, n_heads, n_query, d_head)`.
        key: `(rows, n_kv_heads, n_key, d_head)`.
        value: `(rows, n_kv_heads, n_key, d_head)`.
        attention_mask: Additive, `(rows, 1, n_query, n_key)`, or None.
        scaling: Factor on the scores; the module's own if None.
        dropout: Ignored: models are in evaluation mode.
        softcap: Cap of the scores (Gemma-2), or None.
        unused: Arguments of other implementations.

    Returns:
        Output `(rows, n_query, n_heads, d_head)` and pattern `(rows, n_heads, n_query, n_key)`.
    """
    group = query.shape[1] // key.shape[1]
    if group > 1:  # a copy would change the memory layout, and with it the last bit of a product
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = torch.matmul(query, key.transpose(2, 3)) * (module.scaling if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[-2]]
    pattern = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    pattern = _through_tape(module, pattern)
    return torch.matmul(pattern, value).transpose(1, 2).contiguous(), pattern


def _through_tape(module: Any, pattern: Tensor) -> Tensor:
    tape = _TAPE.get()
    if tape is None:
        return pattern
    layer = int(module.layer_idx)
    if layer in tape.imposed:
        imposed = tape.imposed[layer].to(pattern.dtype)
        rows = tape.imposed_rows.get(layer)
        pattern = imposed if rows is None else torch.where(rows[:, None, None, None], imposed, pattern)
    if tape.record:
        tape.recorded[layer] = pattern
    return pattern


def additive_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Build eager attention's mask, with a floor that survives its softmax in float32.

    Eager masks a float64 model with that type's minimum, which is minus infinity in float32: a padded
    query, all of whose keys are masked, would become NaN and spoil the rows beside it.
    """
    mask: Tensor | None = eager_mask(*args, **kwargs)
    if mask is None or mask.dtype != torch.float64:
        return mask
    return mask.clamp_min(torch.finfo(torch.float32).min)


def register_attention() -> None:
    """Make the implementation known to transformers; called when a model is loaded, not at import."""
    AttentionInterface.register(IMPLEMENTATION, attention_forward)
    AttentionMaskInterface.register(IMPLEMENTATION, additive_mask)
