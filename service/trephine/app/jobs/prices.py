"""What work of a model takes of one core, in float32 operations and seconds.

Prices are fitted to processor time on SmolLM2 (neurons and transcoders; `python -m
benchmarks.prediction_costs` prints the comparison), everything else scales with the model. On machines of
another speed predicted times are off by that factor.
"""

from __future__ import annotations

from trephine.domain.models import ModelInfo

_FLOPS_PER_SECOND = 1.2e11
"""One core, products of some hundred rows."""
_BYTES_PER_SECOND = 5e9
"""Of weights, which every pass reads however few tokens it has."""
_WORD_SECONDS = 6e-9
"""Of a token and a word of the vocabulary beyond the product: what compares the distributions of two runs."""


def block_seconds(tokens: float, info: ModelInfo) -> float:
    """Return what passing tokens through all blocks takes, no logits read."""
    embeddings = info.d_vocab * info.d_model * (1 if info.tied_embeddings else 2)
    return tokens * 2 * (info.n_parameters - embeddings) / _FLOPS_PER_SECOND


def pass_seconds(passes: float, info: ModelInfo) -> float:
    """Return what passes take beside their tokens."""
    return passes * info.memory_bytes / _BYTES_PER_SECOND


def logit_seconds(tokens: float, info: ModelInfo) -> float:
    """Return what logits of tokens take, and comparing each with another one's."""
    return tokens * info.d_vocab * (2 * info.d_model / _FLOPS_PER_SECOND + _WORD_SECONDS)


def product_seconds(flops: float) -> float:
    """Return what other products take."""
    return flops / _FLOPS_PER_SECOND
