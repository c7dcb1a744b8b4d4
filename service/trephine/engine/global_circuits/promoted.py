"""Which tokens candidates promote, and the words for it."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.lens import lens_logits

_ROWS = 64
"""Decoders whose whole vocabulary is looked at in one quantum."""
_PER_FEATURE = 4
"""Tokens of one candidate that can become nodes."""


def promoted_tokens(
    hosted: HostedModel, written: Tensor, sizes: Tensor, most: int
) -> Generator[None, None, tuple[int, ...]]:
    """Return the tokens that decoders `(n, d_model)` times `sizes (n,)` promote most, from the first on."""
    best = torch.zeros(hosted.info.d_vocab)
    for rows in torch.arange(len(written)).split(_ROWS):
        with torch.inference_mode():
            scores = lens_logits(hosted.architecture, written[rows.to(written.device)]).float()
            scores = (scores - scores.mean(-1, keepdim=True))[:, : hosted.info.d_vocab].cpu()
        scores = scores * sizes[rows, None].float()
        top = scores.topk(min(_PER_FEATURE, scores.shape[1]), dim=1)
        best.scatter_reduce_(0, top.indices.flatten(), top.values.flatten(), "amax")
        yield None
    chosen = best.topk(min(most, len(best)))
    tokens = chosen.indices[chosen.values > 0].tolist()
    return tuple(token for token in tokens if hosted.token(token).raw)
