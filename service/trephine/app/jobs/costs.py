"""What a command is predicted to cost an engine, before any work and without a tokenizer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

from trephine.domain.ablation import MeasureAblation
from trephine.domain.activations import RankActivity, ReadActivations
from trephine.domain.commands import Command
from trephine.domain.edits import ProposeEdit
from trephine.domain.exports import CompileExport
from trephine.domain.feature_index import bytes_per_feature
from trephine.domain.features import ContrastFeatures, IndexFeatures, RankByToken
from trephine.domain.fitting import FitReplacementSet
from trephine.domain.generation import Generate, Score
from trephine.domain.models import ModelInfo
from trephine.domain.replacements import (
    LayerKind,
    LoadReplacementSet,
    ReplacementLayerInfo,
)

Sets = Mapping[str, tuple[ReplacementLayerInfo, ...]]
"""Layers of the sets that are loaded beside a model, by the set's name."""

_BYTES_PER_TOKEN = 3
"""English text has about four bytes a token; a smaller figure errs on the side of more cost."""

_RETAIN_TOKENS = 2048
"""The retain text with some room."""

_PASS_TOKENS = 1024
"""Of one forward pass of work that runs in many."""

_CONTRAST_TOKENS, _ENCODED = 512, 3
"""Of one pass of a contrast, and how often its features lie side by side: read, encoded, at their largest."""

_PROBE_TOKENS = 1024
"""The probe text that admits a replacement set."""

_FLOAT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """A prediction. No tokens means cheap: such a command never waits."""

    tokens: int
    """Tokens that pass through the model, over all rows."""
    memory_bytes: int
    """Beyond the loaded model, at the peak."""
    seconds: float = 0.0
    """Processor time of one core; 0 of what nobody can ask to be predicted."""


CHEAP = Cost(tokens=0, memory_bytes=0)


@singledispatch
def predict(command: Command[Any, Any], info: ModelInfo) -> Cost:
    """Predict what a command costs on a model; commands that run no forward pass are cheap."""
    return CHEAP


@singledispatch
def predict_beside(command: Command[Any, Any], info: ModelInfo, sets: Sets) -> Cost:
    """Predict what a command costs on a model that has some sets beside it.

    Commands whose work grows with the features of a set count those; to all others `predict` applies.
    """
    return predict(command, info)


def feature_counts(
    name: str, info: ModelInfo, sets: Sets, layers: Collection[int] | None = None
) -> dict[int, int]:
    """Count features by layer: of a set those of its layers, of anything unknown as many as neurons.

    Args:
        name: `neurons` or a set.
        info: The loaded model.
        sets: What is loaded beside it.
        layers: Only these; None means all that there are.
    """
    known = sets.get(name)
    if known is None:
        counts = dict.fromkeys(range(info.n_layers), info.d_mlp)
    else:
        counts = {one.layer: one.d_sae for one in known}
    return {layer: count for layer, count in counts.items() if layers is None or layer in layers}


@predict.register
def _(command: Generate, info: ModelInfo) -> Cost:
    return _rows([tokens_of(row.prompt) + command.max_new_tokens for row in command.rows], info)


@predict.register
def _(command: Score, info: ModelInfo) -> Cost:
    rows = [tokens_of(row.prompt) + tokens_of(row.continuation) for row in command.rows]
    return _rows([length for length in rows for _ in range(2)], info)


@predict.register
def _(command: MeasureAblation, info: ModelInfo) -> Cost:
    sets = command.controls.sets if command.controls else 0
    prompt = tokens_of(command.prompt)
    return Cost(tokens=prompt * (sets + 3) + 2 * _RETAIN_TOKENS, memory_bytes=forward_bytes(prompt, 16, info))


@predict.register
def _(command: ProposeEdit, info: ModelInfo) -> Cost:
    prompt = tokens_of(command.prompt)
    retain = _RETAIN_TOKENS if command.retain_text is None else tokens_of(command.retain_text)
    tokens = command.max_features * (prompt + retain)
    return Cost(tokens=tokens, memory_bytes=forward_bytes(min(retain, 512), 2, info))


@predict.register
def _(command: CompileExport, info: ModelInfo) -> Cost:
    return Cost(tokens=_RETAIN_TOKENS, memory_bytes=2 * info.memory_bytes)


@predict.register
def _(command: FitReplacementSet, info: ModelInfo) -> Cost:
    """It works in a process of its own and never waits; layers that do not fit at once follow each other."""
    recipe = command.recipe
    layers = len(recipe.layers) or info.n_layers
    together = recipe.kind is LayerKind.CROSS_LAYER_TRANSCODER or recipe.end_to_end.tokens > 0
    outputs = layers if recipe.kind is LayerKind.CROSS_LAYER_TRANSCODER else 1
    weights = recipe.d_sae * info.d_model * (1 + outputs)
    layer = _FLOAT * (4 * weights + 6 * recipe.batch_tokens * recipe.d_sae)
    return Cost(tokens=0, memory_bytes=info.memory_bytes + layer * (layers if together else 1))


@predict.register
def _(command: LoadReplacementSet, info: ModelInfo) -> Cost:
    return Cost(tokens=_PROBE_TOKENS, memory_bytes=forward_bytes(128, 1, info))


@predict.register
def _(command: ReadActivations, info: ModelInfo) -> Cost:
    return _rows([tokens_of(command.text)], info)


@predict.register
def _(command: RankActivity, info: ModelInfo) -> Cost:
    return _rows([tokens_of(command.text)], info)


@predict.register
def _(command: RankByToken, info: ModelInfo) -> Cost:
    return _rows([tokens_of(command.text)], info)


@predict_beside.register
def _(command: ContrastFeatures, info: ModelInfo, sets: Sets) -> Cost:
    lengths = [tokens_of(text) for text in (*command.first, *command.second)]
    counts = feature_counts(command.replacement, info, sets, command.layers or None)
    maxima = len(lengths) * sum(counts.values()) * _FLOAT
    encoded = _ENCODED * _CONTRAST_TOKENS * max(counts.values(), default=0) * _FLOAT
    memory = maxima + encoded + forward_bytes(_PASS_TOKENS, 1, info)
    return Cost(tokens=sum(lengths), memory_bytes=memory)


@predict_beside.register
def _(command: IndexFeatures, info: ModelInfo, sets: Sets) -> Cost:
    # It runs for hours in small passes: it must not keep every other operation waiting.
    features = sum(feature_counts(command.replacement, info, sets, command.layers or None).values())
    per_feature = bytes_per_feature(kept=command.contexts_per_feature, window=command.window)
    return Cost(
        tokens=min(command.max_tokens, _PASS_TOKENS),
        memory_bytes=features * per_feature + forward_bytes(_PASS_TOKENS, 1, info),
    )


def tokens_of(text: str) -> int:
    """Guess how many tokens a text has, rather too many than too few; at least one."""
    return max(1, -(-len(text.encode("utf-8", "surrogatepass")) // _BYTES_PER_TOKEN))


def _rows(lengths: list[int], info: ModelInfo) -> Cost:
    longest = min(max(lengths), info.context_length)
    return Cost(tokens=sum(lengths), memory_bytes=forward_bytes(longest, len(lengths), info))


def forward_bytes(length: int, rows: int, info: ModelInfo) -> int:
    """One padded batch: logits, the keys and values, and one block's activations."""
    logits = info.d_vocab
    cache = 2 * info.n_layers * info.d_model
    block = 4 * info.d_model + 3 * info.d_mlp + info.n_heads * length
    return rows * length * (logits + cache + block) * _FLOAT


def frozen_numbers(rows: int, info: ModelInfo) -> int:
    """Numbers of one block's frozen network, of each of so many rows that pass together."""
    return 6 * info.d_model + 2 * info.d_mlp + info.n_heads * rows
