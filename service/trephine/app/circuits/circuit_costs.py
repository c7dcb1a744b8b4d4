"""What a discovery is predicted to take, from the exact token count and the sets' description.

A discovery is a forward pass with its sweeps, per node a row (a sweep through its cone) and a look through
the lens, per verified node another pass. The constants are fitted to processor time on SmolLM2 (neurons and
transcoders, 5 to 110 tokens, 64 to 512 nodes; `python -m benchmarks.discovery_costs` prints the comparison),
everything else scales with the model. On machines of another speed the time is off by that factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from trephine.app.circuits.graph_sets import spanned_layers
from trephine.app.jobs.costs import Cost, Sets, tokens_of
from trephine.domain.circuits import DiscoverCircuit
from trephine.domain.models import ModelInfo
from trephine.domain.replacements import LayerKind, ReplacementLayerInfo
from trephine.domain.sites import NEURONS, SiteKind
from trephine.domain.sweeps import (
    SCORES_PER_SWEEP,
    TABLED_BYTES,
    TARGETS_PER_ROUND,
    WHOLE_EDGES,
    WHOLE_EDGES_ON_GPU,
    feature_targets_per_sweep,
    neuron_targets_per_sweep,
)

_FLOPS_PER_SECOND = 5e10
"""One core, float32, matrix products of a few dozen rows."""

_OVERHEAD_SECONDS, _NODE_SECONDS = 0.3, 0.0012
"""Of every discovery; of every node: its row is sorted, thresholded and stored."""

_ABLATION_SECONDS = 0.012
"""Of every verified node, however short the prompt."""

_PASSES = 3
"""A forward pass and two sweeps of its size: effects, and the first rows."""

_CONE, _CONE_OF_SETS = 0.07, 0.03
"""Share of all blocks and positions that a node's sweep touches on average, its scores included. Influential
nodes are low or early; features of a set are scored where they are active, neurons everywhere."""

_NEURON_SCORE_SECONDS = 1e-7
"""Of a node and a neuron beside sets at a position: all are active, and every row is scored against all."""

_SCORES_ALIVE = 3
"""Copies of a block's scores of neurons that are alive at once: of gates, of values, their mixture."""

_PAGED_SHARE = 1.3
"""Of a set's weights: they are paged in, and some rows are held again, widened to float32."""

_SOURCES_PER_ROW = 4000
"""Sources that a row stores on average, of at most 20,000."""

_LENS_ROWS = 2 * 48
"""Rows of logits that are alive while decoders are read."""

_PRODUCT_ROWS = 30 << 10
"""Rows of the stream that products over neurons leave behind on a CPU with 512-bit units: a program per shape
and a hole below it. What is said of sets holds it already."""

_FLOAT, _SOURCE_BYTES = 4, 12

_PADDED = 1.5
"""Rows of a prompt's tables on a GPU, per vector that is written."""

_DENSE_ALIVE = 6
"""Copies of a sweep's scores that are alive at once on a GPU: as they come, in order, sizes, masks."""

_STORED_SHARE = 0.2
"""Of a row's active features, those that are stored on a GPU while a graph grows."""

_SOLVED = 2
"""Copies of the matrix of nodes by nodes that ranks them."""

_CELL_BYTES, _ROWS_ALIVE, _KEPT_SHARE = 70, 2, 0.4
"""With neurons beside sets, on a CPU: what is listed of an active feature; copies of a sweep's dense rows
that are alive at once; share of them that is stored."""

_L0_SHARE = 0.02
"""Of a dictionary's features, those that are active where it does not say how many."""
_SURELY = 3
"""No prompt has so many times the active features that are expected of it: more nodes than that find none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryCost:
    """A prediction."""

    seconds: float
    """Processor time of one core."""
    memory_bytes: int
    """At the peak, beyond the loaded model, in an engine that has found nothing before.

    A set's weights are paged in by its first use and count here; later discoveries find them.
    """


def discovery_cost(
    command: DiscoverCircuit, info: ModelInfo, n_tokens: int, layers: Sequence[ReplacementLayerInfo] = ()
) -> DiscoveryCost:
    """Predict a discovery.

    Args:
        command: What is asked.
        info: The loaded model.
        n_tokens: Of the prompt.
        layers: Layers of all sets that are opened, neurons beside them included; none for the model's own
            neurons alone.
    """
    features = sum(layer.d_sae for layer in layers) if layers else info.n_layers * info.d_mlp
    active = sum(_active(layer, n_tokens) for layer in layers) if layers else n_tokens * features
    nodes = min(command.max_feature_nodes, n_tokens * features, ceil(_SURELY * active))
    command = replace(command, max_feature_nodes=nodes, verify_nodes=min(command.verify_nodes, nodes))
    on_gpu = bool(layers) and not info.device.startswith("cpu")
    return DiscoveryCost(
        seconds=_seconds(command, info, n_tokens, layers),
        memory_bytes=_operators(info, n_tokens, layers)
        + (
            _on_gpu(command, info, n_tokens, layers)
            if on_gpu
            else _temporaries(info, n_tokens, layers)
            + (0 if layers else _PRODUCT_ROWS * info.d_model * _FLOAT)
            + _results(command, info, n_tokens)
            + _dense_rows(command, n_tokens, layers)
        )
        + _SOLVED * command.max_feature_nodes**2 * _FLOAT
        + int(_PAGED_SHARE * sum(layer.memory_bytes for layer in layers)),
    )


def _seconds(
    command: DiscoverCircuit, info: ModelInfo, n_tokens: int, layers: Sequence[ReplacementLayerInfo]
) -> float:
    per_token = 2 * info.n_parameters
    encoders = 2 * sum(layer.d_in * layer.d_sae for layer in layers)
    blocks = per_token - 2 * info.d_vocab * info.d_model
    neurons = sum(layer.kind is LayerKind.NEURONS for layer in layers) / len(layers) if layers else 1.0
    cone = neurons * _CONE + (1 - neurons) * _CONE_OF_SETS
    lens = 2 * info.d_vocab * info.d_model
    flops = float(n_tokens) * (_PASSES * per_token + encoders)
    flops += command.max_feature_nodes * (lens + cone * n_tokens * blocks)
    beside = n_tokens * sum(layer.d_sae for layer in layers if layer.kind is LayerKind.NEURONS)
    # Ablations of neurons resume at the ablated layer, half-way up on average; a set's encode at every layer.
    flops += command.verify_nodes * n_tokens * (blocks if layers else blocks // 2)
    overhead = _OVERHEAD_SECONDS + command.max_feature_nodes * _NODE_SECONDS
    overhead += command.verify_nodes * _ABLATION_SECONDS
    overhead += command.max_feature_nodes * beside * _NEURON_SCORE_SECONDS
    return overhead + flops / _FLOPS_PER_SECOND


def _operators(info: ModelInfo, n_tokens: int, layers: Sequence[ReplacementLayerInfo]) -> int:
    """What is kept of the forward pass: streams, norms, gates, patterns, and a set's activations."""
    block = 6 * info.d_model + 2 * info.d_mlp + info.n_heads * n_tokens
    widest = max((layer.d_sae for layer in layers), default=0)
    return n_tokens * (info.n_layers * block + 2 * widest) * _FLOAT


def _temporaries(info: ModelInfo, n_tokens: int, layers: Sequence[ReplacementLayerInfo]) -> int:
    """The larger of a sweep's rows with their scores, and of the logits that the lens reads."""
    per_sweep = (
        feature_targets_per_sweep(n_tokens)
        if layers
        else min(TARGETS_PER_ROUND, neuron_targets_per_sweep(n_tokens))
    )
    rows = per_sweep * n_tokens
    width = 6 * info.d_model if layers else _SCORES_ALIVE * (4 * info.d_model + 3 * info.d_mlp)
    return max(rows * width, _LENS_ROWS * info.d_vocab) * _FLOAT


def _dense_rows(command: DiscoverCircuit, n_tokens: int, layers: Sequence[ReplacementLayerInfo]) -> int:
    """Rows over neurons beside sets, as they come and as they are stored: there are no sparse ones."""
    if all(layer.kind is not LayerKind.NEURONS for layer in layers):
        return 0
    cells = int(sum(_active(layer, n_tokens) for layer in layers))
    targets = min(feature_targets_per_sweep(n_tokens), max(TARGETS_PER_ROUND, command.max_feature_nodes // 3))
    dense = min(targets * cells, SCORES_PER_SWEEP)
    stored = min(WHOLE_EDGES, _KEPT_SHARE * command.max_feature_nodes * cells)
    return int(cells * _CELL_BYTES + dense * _ROWS_ALIVE * _FLOAT + stored * 2 * _FLOAT)


def _active(layer: ReplacementLayerInfo, n_tokens: int) -> float:
    """Active features of a layer over the prompt."""
    return n_tokens * (layer.claimed_l0 or _L0_SHARE * layer.d_sae)


def _on_gpu(
    command: DiscoverCircuit, info: ModelInfo, n_tokens: int, layers: Sequence[ReplacementLayerInfo]
) -> int:
    """What a GPU holds: tables of the prompt where they are made, a sweep's scores, and the growing rows."""
    active = [_active(layer, n_tokens) for layer in layers]
    written = sum(count * len(layer.sites_out) for count, layer in zip(active, layers, strict=True))
    cells, nodes = sum(active), command.max_feature_nodes
    matrices = info.n_layers * (2 * info.d_model**2 + 2 * info.n_heads * n_tokens**2)
    tables = _FLOAT * (_PADDED * written * info.d_model + matrices)
    at_mlps = all(layer.site_in.kind is SiteKind.MLP_IN for layer in layers)
    tabled = at_mlps and tables <= TABLED_BYTES
    targets = min(feature_targets_per_sweep(n_tokens, tabled=tabled), max(TARGETS_PER_ROUND, nodes // 3))
    scores = min(targets * written, SCORES_PER_SWEEP) * _DENSE_ALIVE * _FLOAT
    stored = nodes * cells
    kept = min(WHOLE_EDGES_ON_GPU, stored * _STORED_SHARE)
    rows = kept * 2 * _FLOAT + nodes * (1 + info.n_layers) * n_tokens * _FLOAT
    return int((tables if tabled else 0) + scores + rows)


def _results(command: DiscoverCircuit, info: ModelInfo, n_tokens: int) -> int:
    """The rows: sources with weights, and an error and a token each."""
    row = _SOURCES_PER_ROW * _SOURCE_BYTES + (1 + info.n_layers) * n_tokens * _FLOAT
    return command.max_feature_nodes * row


def admission_cost(command: DiscoverCircuit, info: ModelInfo, sets: Sets) -> Cost:
    """Return what admission holds a discovery to: as predicted, of a prompt whose length is guessed."""
    prompt = tokens_of(command.prompt)
    alone = command.sets == (NEURONS,)
    layers = () if alone else spanned_layers(command.sets, info, sets, command.layers)
    memory = discovery_cost(command, info, prompt, layers).memory_bytes
    return Cost(tokens=prompt * (1 + command.verify_nodes), memory_bytes=memory)
