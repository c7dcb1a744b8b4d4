"""Logit lens: which tokens a decoder promotes, read through the final norm's gain (nostalgebraist 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from trephine.engine.models.architecture import Architecture, Norm


def decoder_directions(architecture: Architecture, layer: int, index: Tensor) -> Tensor:
    """Return what neurons write into the residual stream, up to a positive scale: `(n, d_model)`."""
    block = architecture.blocks[layer]
    decoder = block.mlp.W_down[:, index].T
    return decoder if block.mlp_post_norm is None else _through_gain(block.mlp_post_norm, decoder)


def lens_logits(architecture: Architecture, directions: Tensor) -> Tensor:
    """Return what directions `(n, d_model)` add to the logits `(n, d_vocab)` at a final norm scale of 1."""
    read = _through_gain(architecture.final_norm, directions)
    return read.to(architecture.W_U.dtype) @ architecture.W_U.T


def extreme_tokens(architecture: Architecture, directions: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rank the vocabulary along directions in the residual stream.

    Args:
        architecture: The model.
        directions: `(n, d_model)`.
        count: Tokens per end.

    Returns:
        Promoted and suppressed token ids, int64 `(n, count)` each, strongest first.
    """
    scores = lens_logits(architecture, directions)
    top, bottom = scores.topk(count, largest=True).indices, scores.topk(count, largest=False).indices
    return top.cpu(), bottom.cpu()


def _through_gain(norm: Norm, directions: Tensor) -> Tensor:
    wide = torch.promote_types(directions.dtype, torch.float32)
    return norm.centre(directions.to(wide)) * norm.gain
