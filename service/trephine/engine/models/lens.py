"""Logit lens: which tokens a decoder promotes, read through the final norm's gain (nostalgebraist 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from trephine.domain.tokens import Token
from trephine.engine.models.architecture import Architecture, Norm
from trephine.engine.models.hosted import HostedModel

Scored = tuple[tuple[Token, float], ...]
"""Tokens with scores."""
Ends = tuple[Scored, Scored]
"""The largest scores, largest first, and the smallest, smallest first."""


def decoder_directions(architecture: Architecture, layer: int, index: Tensor) -> Tensor:
    """Return what neurons write into the residual stream, up to a positive scale: `(n, d_model)`."""
    block = architecture.blocks[layer]
    decoder = block.mlp.W_down[:, index].T
    return decoder if block.mlp_post_norm is None else _through_gain(block.mlp_post_norm, decoder)


def lens_logits(architecture: Architecture, directions: Tensor) -> Tensor:
    """Return what directions `(n, d_model)` add to the logits `(n, d_vocab)` at a final norm scale of 1."""
    read = _through_gain(architecture.final_norm, directions)
    return read.to(architecture.W_U.dtype) @ architecture.W_U.T


def extreme_tokens(hosted: HostedModel, scores: Tensor, count: int) -> list[Ends]:
    """Rank the vocabulary. Rows that are of no token, by which embeddings are padded, are left out.

    Args:
        hosted: The model.
        scores: `(n, d_vocab)`.
        count: Tokens per end.

    Returns:
        Per row both ends, `count` tokens each or all that there are.
    """
    known = scores[:, : hosted.info.d_vocab].float()
    largest, smallest = _largest(hosted, known, count), _largest(hosted, -known, count)
    turned = (tuple((token, -score) for token, score in row) for row in smallest)
    return list(zip(largest, turned, strict=True))


def _largest(hosted: HostedModel, scores: Tensor, count: int) -> list[Scored]:
    width = scores.shape[1]
    looked_at = min(count, width)
    while True:
        best = scores.topk(looked_at)
        found = [
            tuple(pair for pair in zip(hosted.tokens(ids), values, strict=True) if pair[0].raw)
            for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        if looked_at == width or all(len(row) >= count for row in found):
            return [row[:count] for row in found]
        looked_at = min(2 * looked_at, width)


def _through_gain(norm: Norm, directions: Tensor) -> Tensor:
    wide = torch.promote_types(directions.dtype, torch.float32)
    return norm.centre(directions.to(wide)) * norm.gain
