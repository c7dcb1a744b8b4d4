"""What a global circuit is predicted to take, from how many tokens are read and the set's description.

Texts pass through the model twice; on held-out ones every source is ablated. Beside passes there are products
of all candidates with all candidates, and with the whole vocabulary. Constants are fitted to processor time
on SmolLM2 (transcoders and neurons, 512 to 2,048 candidates, 250 to 6,000 training tokens), everything else
scales with the model.
"""

from __future__ import annotations

from dataclasses import dataclass

from trephine.app.jobs.costs import Cost, Sets, feature_counts, forward_bytes, predict_beside, tokens_of
from trephine.domain.global_circuits import ABLATED_TOKENS, DiscoverGlobalCircuit
from trephine.domain.models import ModelInfo
from trephine.domain.sites import NEURONS

_FLOPS_PER_SECOND = 8e10
"""One core, float32, matrix products of a few hundred rows."""
_OVERHEAD_SECONDS = 1.0
"""Of every one: nodes, words, what is resampled."""
_LAYER_SECONDS = 0.001
"""Of a layer in a pass, however few rows it has."""
_FEATURE_SECONDS = 1e-8
"""Of a feature on a token: its sums are taken in double precision."""
_PAIR_SECONDS = 1e-7
"""Of a pair of candidates: what is made of its sums, and its place among the strongest."""
_RESAMPLED_SECONDS = 1e-7
"""Of two ablated edges in one resample: ranks are counted in pairs."""

_PACK_TOKENS = 256
"""Of one pass, the longest text apart."""
_HALVES = 2
"""Of the training texts: those of each run apart."""
_COVERED_PACKS = 2
"""Of held-out texts, on which the share of direct effects is taken."""
_TOKENS, _LOGITS = 2048, 512
"""Whose edges to and from candidates are measured."""
_UPWARDS = 0.3
"""Of a pass per edge: it ends where the target reads, half way up in the mean, and edges share sources."""
_MATRICES = 6
"""Of all pairs of candidates beside their sums: virtual weights, edges, those of each half, and shares."""
_SCORED_ROWS = 64
_RUNS = 2
"""Held at once: one pass's states, and the next one's or those without a source."""
_FLOAT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class GlobalCost:
    """A prediction."""

    seconds: float
    """Processor time of one core."""
    memory_bytes: int
    """At the peak, beyond the loaded model."""
    tokens: int
    """That pass through the model; products count as the passes that would take as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """What there is to multiply."""

    read: int
    """Training tokens."""
    held_out: int
    features: int
    widest: int
    """Features of the widest layer."""
    candidates: int
    ends: int
    readouts: int
    blocks: int
    """Weights of the model's blocks."""
    encoders: int
    """Weights of the set's encoders; 0 for neurons."""


def global_circuit_cost(
    command: DiscoverGlobalCircuit, info: ModelInfo, sets: Sets, *, training: int, held_out: int
) -> GlobalCost:
    """Predict a global circuit.

    Args:
        command: What is asked.
        info: The loaded model.
        sets: What is loaded beside it.
        training: Tokens of the training texts, as far as they are read.
        held_out: The same of the held-out texts.
    """
    sizes = _sizes_of(command, info, sets, training, held_out)
    flops = 2.0 * _products(command, info, sizes)
    return GlobalCost(
        seconds=flops / _FLOPS_PER_SECOND + _beside_products(command, info, sizes),
        memory_bytes=_memory(command, info, sizes)
        + sum(layer.memory_bytes for layer in sets.get(command.replacement, ())),
        tokens=int(flops / 2 / info.n_parameters) + 1,
    )


def _sizes_of(
    command: DiscoverGlobalCircuit, info: ModelInfo, sets: Sets, training: int, held_out: int
) -> _Sizes:
    counts = feature_counts(command.replacement, info, sets, command.layers)
    features, neurons = sum(counts.values()), command.replacement == NEURONS
    tokens = min(_TOKENS, training) if command.bounds.tokens else 0
    logits = _LOGITS if command.bounds.logits else len(command.start.tokens)
    return _Sizes(
        read=training,
        held_out=held_out,
        features=features,
        widest=max(counts.values(), default=0),
        candidates=min(command.bounds.candidates, features),
        ends=tokens + logits,
        readouts=2 if neurons else 1,
        blocks=max(info.n_parameters - info.d_vocab * info.d_model, info.n_parameters // 2),
        encoders=0 if neurons else features * info.d_model,
    )


def _products(command: DiscoverGlobalCircuit, info: ModelInfo, sizes: _Sizes) -> float:
    """Count multiplications of weights with what passes, of candidates with each other, and with tokens."""
    n, vocabulary = sizes.candidates, info.d_vocab * info.d_model
    through = 2 * (sizes.blocks + sizes.encoders) + (vocabulary if command.bounds.logits else 0)
    together = sizes.readouts * n * (n // 2 + sizes.ends)
    apart = sizes.readouts * n * (n // 2 + sizes.ends) * info.d_model
    named = (n + command.bounds.nodes) * vocabulary
    # A layer is encoded for the source, and one for each of its targets.
    layer = 2 * sizes.widest * info.d_model if sizes.encoders else 0
    ablated = _ablated(sizes) * command.verify_edges * (_UPWARDS * sizes.blocks + layer)
    return sizes.read * (through + together) + apart + named + ablated + _coverage(command, info, sizes)


def _coverage(command: DiscoverGlobalCircuit, info: ModelInfo, sizes: _Sizes) -> float:
    """Of sets alone: all features below, times all of the circuit's features, on a few packs."""
    if not sizes.encoders:
        return 0.0
    tokens = min(sizes.held_out, _COVERED_PACKS * _PACK_TOKENS)
    pairs = sizes.features * command.bounds.nodes / 2
    return tokens * (sizes.blocks + sizes.encoders + 2 * pairs) + _COVERED_PACKS * pairs * info.d_model


def _beside_products(command: DiscoverGlobalCircuit, info: ModelInfo, sizes: _Sizes) -> float:
    """Return the seconds that are spent on single numbers, and on calls."""
    packs = 2 * (_HALVES + sizes.read // _PACK_TOKENS)
    ablated_packs = _ablated(sizes) / _pack(command, sizes.held_out) + 1
    passes = packs + command.verify_edges * ablated_packs * _UPWARDS
    return (
        _OVERHEAD_SECONDS
        + passes * info.n_layers * _LAYER_SECONDS
        + sizes.read * sizes.features * _FEATURE_SECONDS
        + sizes.candidates**2 * _PAIR_SECONDS
        + command.verify_edges**2 * command.bootstrap * _RESAMPLED_SECONDS
    )


def _ablated(sizes: _Sizes) -> int:
    """Held-out tokens that sources are ablated on: whole packs, until there are enough."""
    return min(sizes.held_out, ABLATED_TOKENS + _PACK_TOKENS)


def _memory(command: DiscoverGlobalCircuit, info: ModelInfo, sizes: _Sizes) -> int:
    n, readouts = sizes.candidates, sizes.readouts
    pack = max(_pack(command, sizes.read // _HALVES), _pack(command, sizes.held_out // _HALVES))
    kept = (2 * readouts + readouts + _MATRICES) * n * n + (4 + 2 * readouts) * n * sizes.ends
    return (
        _FLOAT * (kept + _SCORED_ROWS * 2 * info.d_vocab + 8 * sizes.features)
        + _RUNS * _operators(pack, info)
        + forward_bytes(pack, 1, info)
        + _FLOAT * pack * 4 * sizes.widest
    )


def _pack(command: DiscoverGlobalCircuit, tokens: int) -> int:
    """Tokens of one pass: a pack is filled as far as there are texts, and holds one in any case."""
    return max(1, min(max(_PACK_TOKENS, command.context_tokens), tokens))


def _operators(tokens: int, info: ModelInfo) -> int:
    block = 6 * info.d_model + 3 * info.d_mlp + info.n_heads * tokens
    return tokens * info.n_layers * block * _FLOAT


@predict_beside.register
def _(command: DiscoverGlobalCircuit, info: ModelInfo, sets: Sets) -> Cost:
    """What admission holds it to: as predicted, of texts whose lengths are guessed."""
    training, held_out = (
        sum(min(tokens_of(text), command.context_tokens) for text in split)
        for split in (command.training, command.held_out)
    )
    cost = global_circuit_cost(command, info, sets, training=training, held_out=held_out)
    return Cost(tokens=cost.tokens, memory_bytes=cost.memory_bytes)
