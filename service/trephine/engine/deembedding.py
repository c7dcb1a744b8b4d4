"""De-embeddings: which tokens' embeddings a direction reads, by the weights alone (Dunefsky et al. 2024)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trephine.domain.tokens import Token
from trephine.engine.architecture import Architecture, Norm
from trephine.engine.hosted import HostedModel

Ends = tuple[tuple[tuple[Token, float], ...], tuple[tuple[Token, float], ...]]
"""Strongest first: what excites, what inhibits."""


def token_embeddings(architecture: Architecture) -> Tensor:
    """Return what each token puts into the first block `(d_vocab, d_model)`, without positions."""
    module: Any = architecture.embedding
    weight: Tensor = module.weight.detach()
    scale = getattr(module, "embed_scale", None)  # Gemma-2 rounds it to the weights' dtype
    scaled = weight if scale is None else weight * scale.to(weight.dtype)
    return scaled.to(torch.promote_types(weight.dtype, torch.float32))


def excitations(architecture: Architecture, direction: Tensor, norm: Norm | None) -> Tensor:
    """Return how much each token's bare embedding moves a read-out of the stream, `(d_vocab,)`.

    Args:
        architecture: The model.
        direction: `(d_model,)`, on the stream; a norm's gain and centring are in it already.
        norm: What reads the stream: embeddings are divided by its scale of them. None: nothing does.
    """
    embeddings = token_embeddings(architecture)
    scores = embeddings @ direction.to(embeddings.dtype)
    return scores if norm is None else scores * norm.inverse_scale(embeddings)[:, 0]


def extreme_tokens(hosted: HostedModel, scores: Tensor, count: int) -> Ends:
    """Return the tokens that excite and inhibit most, with scores. Ids that no token has are left out."""
    known = scores[: min(len(scores), hosted.info.d_vocab)].float()
    ends = (known.topk(count), (-known).topk(count))
    exciting, inhibiting = (
        tuple(zip(hosted.tokens(end.indices.tolist()), (sign * end.values).tolist(), strict=True))
        for sign, end in zip((1, -1), ends, strict=True)
    )
    return exciting, inhibiting
