"""What a fit will take: a few measured products and forward passes, and arithmetic."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence

import torch

from trephine.domain.fitting import FitRecipe, PredictedFit
from trephine.domain.replacements import LayerKind
from trephine.domain.sites import Site
from trephine.engine.fitting.sizes import (
    CHUNK_BYTES,
    FLOAT,
    MAX_SAMPLED_TOKENS,
    SAMPLED_ROWS,
    TRAINED,
    fitted_layers,
    groups,
    layer_bytes,
    weights_of,
)
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.sites import site_width
from trephine.engine.runs.forward import Pass, forward, left_padded

PRODUCTS = 3
"""Of encoder and decoder each: forward, and two for the gradients."""
PASSES, WEIGHT_PASSES = 12, 10
"""Passes over all pre-activations of a batch (norms, selection, figures, their gradients), and over all
weights (gradients, Adam), each of the time of one multiplication."""
END_TO_END_FORWARDS = 5.0
"""The plain pass, the spliced pass and its way back, in forward passes."""
START_SECONDS = 20.0
"""Imports, loading the model, measuring, writing."""
_ROWS = 512
_REPEATS = 3


def predict_fit(
    hosted: HostedModel, recipe: FitRecipe, *, own_samples: bool
) -> Generator[None, None, PredictedFit]:
    """Predict a fit; one measurement a quantum.

    Raises:
        TrephineError: If the recipe does not fit the model, or the fit the memory.
    """
    layers = fitted_layers(hosted, recipe)
    parts = groups(hosted, recipe, layers)
    tuned = recipe.end_to_end.tokens
    per_token = _seconds(lambda: _pass(hosted, 2, recipe.context_tokens)) / (2 * recipe.context_tokens)
    yield
    step = 0.0
    for layer in layers:
        step += _step_seconds(hosted, recipe, layer, max(layers))
        yield
    sampled = min(recipe.tokens + tuned, MAX_SAMPLED_TOKENS) if own_samples else 0
    decode = _seconds(lambda: _pass(hosted, SAMPLED_ROWS, 1)) / SAMPLED_ROWS if sampled else 0.0
    arms = 2 if recipe.end_to_end.local_control else 1
    return PredictedFit(
        seconds=START_SECONDS
        + sampled * decode
        + recipe.tokens * (len(parts) * per_token + step)
        + tuned * ((END_TO_END_FORWARDS + arms - 1) * per_token + arms * step),
        memory_bytes=_memory(hosted, recipe, parts),
        disk_bytes=_disk(hosted, recipe, layers),
    )


def _seconds(work: Callable[[], object]) -> float:
    """Return the shortest of a few runs."""
    found = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return min(found)


def _pass(hosted: HostedModel, rows: int, length: int) -> None:
    ids = [hosted.tokenizer.eos_token_id or 0] * length
    forward(hosted, left_padded(hosted, [(ids, length)] * rows), Pass(keep_last=1))


def _step_seconds(hosted: HostedModel, recipe: FitRecipe, layer: int, last: int) -> float:
    """Return seconds per position of training one layer."""
    d_in = site_width(hosted.architecture, Site(kind=recipe.site, layer=layer))
    outputs = last - layer + 1 if recipe.kind is LayerKind.CROSS_LAYER_TRANSCODER else 1
    d_out = d_in if recipe.kind is LayerKind.SAE else hosted.info.d_model
    device = hosted.model.device
    x, encoder = torch.ones(_ROWS, d_in, device=device), torch.ones(d_in, recipe.d_sae, device=device)
    decoder = torch.ones(recipe.d_sae, d_out, device=device)
    encode = _seconds(lambda: x @ encoder)
    codes = x @ encoder
    products = (encode + outputs * _seconds(lambda: codes @ decoder)) / _ROWS
    element = _seconds(lambda: codes * 1.5) / codes.numel()
    touched = (
        PASSES * recipe.d_sae + WEIGHT_PASSES * weights_of(hosted, recipe, layer, last) / recipe.batch_tokens
    )
    return PRODUCTS * products + element * touched


def _memory(hosted: HostedModel, recipe: FitRecipe, parts: Sequence[Sequence[int]]) -> int:
    """The model, the largest group in training, a chunk of activations; copies in the end-to-end phase."""
    last = max(layer for part in parts for layer in part)
    trained = max(sum(layer_bytes(hosted, recipe, layer, last) for layer in part) for part in parts)
    copies = 0
    if recipe.end_to_end.tokens:
        copies = 2 * FLOAT * sum(weights_of(hosted, recipe, layer, last) for part in parts for layer in part)
    return hosted.info.memory_bytes + trained + copies + CHUNK_BYTES


def _disk(hosted: HostedModel, recipe: FitRecipe, layers: Sequence[int]) -> int:
    """The set, and two checkpoints of every stage while one takes the other's place."""
    weights = sum(weights_of(hosted, recipe, layer, max(layers)) for layer in layers)
    stages = 1 + (1 + recipe.end_to_end.local_control if recipe.end_to_end.tokens else 0)
    return FLOAT * weights * (1 + (TRAINED - 1) * (stages + 1))
