"""What a dataset circuit is predicted to take, from the lengths of its contexts and the sets' description.

Effects take a clean pass, a pass of the twins and sweeps; figures on held-out contexts two passes per budget
and one per random circuit and ablation. Constants are fitted to processor time on SmolLM2 (neurons, heads,
transcoders; every estimator), everything else scales with the model.
"""

from __future__ import annotations

from dataclasses import dataclass

from trephine.app.jobs.costs import Cost, Sets, feature_counts, predict_beside, tokens_of
from trephine.domain.dataset_circuits import (
    ERRORS,
    HEADS,
    ContextTokens,
    DiscoverDatasetCircuit,
    Estimator,
    NodeAblation,
    PositionRule,
)
from trephine.domain.models import ModelInfo
from trephine.domain.sites import NEURONS

_FLOPS_PER_SECOND = 5e10
"""One core, float32, matrix products of a few dozen rows."""

_LAYER_SECONDS = 0.001
"""Of a layer in a pass, however few rows it has."""

_SWEEP = 4
"""A clean pass, its twin and one sweep down, in passes."""

_PACK_TOKENS = 256
"""Of one pass, in which contexts lie side by side."""

_STATES = 5
"""Copies of nodes' activations over a pass: clean, replaced, the twins', gradients, effects."""

_SKETCH, _MOST_CLUSTERS = 4096, 8
"""Numbers of a context's sketch; clusters that are tried where none are named."""

_RANKED_BYTES = 48
"""Of a node: its address, its place in the order, and the layer and position that random circuits match."""

_FLOAT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetCost:
    """A prediction."""

    seconds: float
    """Processor time of one core."""
    memory_bytes: int
    """At the peak, beyond the loaded model and its sets."""
    tokens: int
    """That pass through the model, sweeps counted as passes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Nodes:
    """What nodes there are."""

    layers: int
    """Of every name, added up."""
    width: int
    """Nodes of a position."""
    numbers: int
    """That the nodes of a position have."""
    weights: int
    """Of the sets' encoders; few features are decoded."""


def dataset_circuit_cost(
    command: DiscoverDatasetCircuit, info: ModelInfo, sets: Sets, tokens: ContextTokens
) -> DatasetCost:
    """Predict a dataset circuit.

    Args:
        command: What is asked.
        info: The loaded model.
        sets: What is loaded beside it.
        tokens: Lengths of the contexts.
    """
    found = _nodes_of(command, info, sets)
    nodes = found.width * ((tokens.longest - 1) if command.positions is PositionRule.KEPT else 1)
    work, passes = _work(command, tokens, found.layers, max(1, nodes))
    rows = max(tokens.longest, min(_PACK_TOKENS, tokens.training))
    block = 6 * info.d_model + 2 * info.d_mlp + info.n_heads * rows
    blocks = max(info.n_parameters - info.d_vocab * info.d_model, info.n_parameters // 2)
    return DatasetCost(
        seconds=2 * work * (blocks + found.weights) / _FLOPS_PER_SECOND
        + passes * info.n_layers * _LAYER_SECONDS,
        memory_bytes=_FLOAT * rows * (_STATES * found.numbers + 2 * info.n_layers * block)
        + _FLOAT * _averages(command, nodes)
        + _RANKED_BYTES * nodes,
        tokens=round(work),
    )


def guessed_tokens(command: DiscoverDatasetCircuit) -> ContextTokens:
    """Guess the lengths of contexts without a tokenizer, rather too long than too short."""
    training = [tokens_of(one.clean) for one in command.training]
    twins = [tokens_of(one.corrupted) for one in command.training if one.corrupted is not None]
    return ContextTokens(
        longest=max((*training, *twins)),
        training=sum(training),
        twins=sum(twins),
        held_out=sum(tokens_of(one.clean) for one in command.held_out),
    )


def _work(
    command: DiscoverDatasetCircuit, tokens: ContextTokens, layers: int, nodes: int
) -> tuple[float, float]:
    """Return how many tokens pass through the whole model, and in how many passes."""
    size, packs, held_packs = command.size, _packs(tokens.training), _packs(tokens.held_out)
    sweeps = {
        # A sweep costs as much as a pass; half of the layers lie above one; the first step is the clean run.
        Estimator.INTEGRATED_GRADIENTS: _SWEEP + (command.steps * 1.5 - 1) * layers,
        Estimator.EXACT: _SWEEP + command.exact_nodes / 3,  # the strongest lie high, and passes begin there
    }.get(command.estimator, _SWEEP)
    measured = len(command.ablations) * (2 * (2 + nodes.bit_length() * size.curve) + size.random_circuits + 1)
    edge_tokens = min(tokens.training, tokens.longest * size.edge_examples)
    means = NodeAblation.MEAN in (command.patch, *command.ablations)
    groups = 1 if command.clusters == 1 else 2
    # An edge takes a sweep from its target down: half of one on average.
    edges, edge_passes = size.edge_nodes * edge_tokens / 2, size.edge_nodes * _packs(edge_tokens) / 2
    work = groups * (tokens.training * sweeps + tokens.held_out * (2 + measured) + edges)
    passes = groups * (packs * sweeps + held_packs * (2 + measured) + edge_passes)
    return work + means * (tokens.training + tokens.twins), passes + means * 2 * packs


def _packs(tokens: int) -> int:
    return -(-tokens // _PACK_TOKENS)


def _averages(command: DiscoverDatasetCircuit, nodes: int) -> int:
    """Numbers that are kept of effects: sums over parts, what a pass adds to them, sketches of contexts."""
    parts = 1 + command.stability.draws
    if command.clusters == 1:
        return 2 * parts * nodes + len(command.training) * _SKETCH
    groups = command.clusters or _MOST_CLUSTERS
    return (1 + 2 * groups) * parts * nodes + 3 * len(command.training) * _SKETCH


def _nodes_of(command: DiscoverDatasetCircuit, info: ModelInfo, sets: Sets) -> _Nodes:
    only, layers, width, numbers, errors, weights = command.layers or None, 0, 0, 0, 0, 0
    for name in (command.replacement, *command.beside):
        if name == ERRORS:
            layers, width, numbers = layers + errors, width + errors, numbers + errors * info.d_model
            continue
        if name == HEADS:
            counts = dict.fromkeys(feature_counts(NEURONS, info, {}, only), info.n_heads)
            numbers += len(counts) * info.d_model
        else:
            counts = feature_counts(name, info, sets, only)
            numbers += sum(counts.values())
            errors += 0 if name == NEURONS else len(counts)
            opened = (one for one in sets.get(name, ()) if one.layer in counts)
            weights += sum(one.d_sae * one.d_in for one in opened)
        layers, width = layers + len(counts), width + sum(counts.values())
    return _Nodes(layers=layers, width=width, numbers=numbers, weights=weights)


@predict_beside.register
def _(command: DiscoverDatasetCircuit, info: ModelInfo, sets: Sets) -> Cost:
    """What admission holds it to: as predicted, of contexts whose lengths are guessed."""
    cost = dataset_circuit_cost(command, info, sets, guessed_tokens(command))
    return Cost(tokens=cost.tokens, memory_bytes=cost.memory_bytes)
