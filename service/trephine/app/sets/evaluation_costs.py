"""What an evaluation of a set is predicted to take, from its options and the set's description."""

from __future__ import annotations

from trephine.app.jobs.costs import Cost, Sets, feature_counts, forward_bytes, tokens_of
from trephine.app.jobs.prices import block_seconds, logit_seconds, product_seconds
from trephine.domain.models import ModelInfo
from trephine.domain.replacements import Dictionary, EvaluateReplacementSet

_BUILT_IN_TOKENS = 2048
"""The built-in text, with some room."""
_LAYER_CONTEXTS = 8
"""Contexts on which layers are spliced one by one."""
_FIT_TOKENS = 4096
"""Tokens that controls are fitted on."""
_FLOAT = 4

_OVERHEAD_SECONDS = 1.0
_SOLUTIONS = {Dictionary.RANDOM: 3.0, Dictionary.FROZEN_DECODER: 5.0, Dictionary.FROZEN_ENCODER: 4.0}
"""What fitting a control takes, in least-squares solutions of a layer."""


def evaluation_cost(command: EvaluateReplacementSet, info: ModelInfo, sets: Sets) -> Cost:
    """Count passes of every dictionary and both ablations: all layers together, and one by one.

    Surveyed and plain, then for every dictionary and both ablations all layers together and, on a few
    contexts, one by one (half a pass on average); controls are fitted on one pass over text of their own. A
    perturbation is answered by the model once and by every dictionary twice, from some layer up.
    """
    text = tokens_of(command.text) if command.text else _BUILT_IN_TOKENS
    measured = min(text, command.max_contexts * command.context_tokens)
    alone = min(measured, _LAYER_CONTEXTS * command.context_tokens)
    widths = feature_counts(command.name, info, sets)
    layers, controls = len(command.layers) or len(widths), len(command.controls)
    together, one_by_one = measured * (2 + 3 + controls), alone * layers * (3 + controls)
    perturbed = command.context_tokens * ((2 + controls) * command.perturbations + _LAYER_CONTEXTS)
    fitted = _FIT_TOKENS if controls else 0
    passes = together + one_by_one // 2 + perturbed + fitted
    encoded = (1 + controls) * (measured + command.context_tokens * command.perturbations)
    encoders = sum(widths.values()) * info.d_model
    weights = controls * 2 * encoders * _FLOAT // 2
    return Cost(
        tokens=passes,
        memory_bytes=weights + forward_bytes(command.context_tokens, 2, info),
        seconds=_OVERHEAD_SECONDS
        + block_seconds(passes, info)
        + logit_seconds(together + one_by_one, info)
        + product_seconds(4.0 * encoded * encoders)
        + _fitting(command, widths),
    )


def _fitting(command: EvaluateReplacementSet, widths: dict[int, int]) -> float:
    """Return what fitting controls takes, in every layer that the set covers."""
    solved = sum(2.0 * _FIT_TOKENS * width**2 + width**3 for width in widths.values())
    return product_seconds(solved * sum(_SOLUTIONS.get(one, 1.0) for one in command.controls))
