"""What a dataset circuit is predicted to take, from the lengths of its contexts and the sets' description.

Effects take a clean pass, a pass of the twins and sweeps; figures on held-out contexts two passes per budget
and one per random circuit and ablation. Sweeps end at the lowest layer that has nodes, ablated passes begin
there. Beside passes there are draws, which go through all nodes, and groupings of contexts. Constants are
fitted to processor time on SmolLM2 (`python -m benchmarks.dataset_costs` prints the comparison), everything
else scales with the model.
"""

from __future__ import annotations

from dataclasses import dataclass

from trephine.app.jobs.costs import Cost, Sets, feature_counts, frozen_numbers, predict_beside, tokens_of
from trephine.domain.dataset_circuits import (
    AUTO_CLUSTERS,
    ERRORS,
    HEADS,
    ContextTokens,
    DiscoverDatasetCircuit,
    Estimator,
    Example,
    NodeAblation,
    PositionRule,
)
from trephine.domain.models import ModelInfo
from trephine.domain.sites import NEURONS

_FLOPS_PER_SECOND = 5.2e10
"""One core, float32, matrix products of a few dozen rows."""

_LAYER_SECONDS = 0.001
"""Of a layer in a pass, however few rows it has."""

_READ_BYTES_PER_SECOND = 1.1e10
"""Of weights that are read for one row: every pass ends in the vocabulary's."""

_RUNS, _SWEEP = 2, 2
"""A clean pass and its twin; one sweep down all layers, in passes."""

_MARKED_SECONDS = 5e-9
"""Of a node in an ablated pass: whether it is kept is looked up."""

_SUMMED_SECONDS, _DRAWN_SECONDS, _DRAW_SECONDS = 5e-9, 1.3e-8, 3e-4
"""Of a node in a draw: in every pass, where its effects are added; once, where it is divided and the
strongest are selected; of a draw, however few nodes there are."""

_PACK_TOKENS = 256
"""Of one pass, in which contexts lie side by side."""

_STATES, _STATES_HELD_OUT = 5, 3
"""Copies of nodes' activations over a pass: clean, replaced, the twins', gradients, effects; the same of a
held-out one, without the last two."""

_SKETCH, _MOST_CLUSTERS = 4096, 8
"""Numbers of a context's sketch; clusters that are tried where none are named."""

_SAMPLED_CONTEXTS = 1000
"""That clouds have, and that silhouettes are taken of; more are sampled."""

_AXES_SECONDS, _SILHOUETTE_SECONDS, _COUNT_SECONDS = 4e-9, 2e-9, 1.2e-3
"""Of a grouping: of contexts cubed, their principal axes and 38 clouds; for every number of clusters that is
tried, of contexts cubed, silhouettes, and of contexts, what is done one by one."""

_CLUSTER_SECONDS, _ASSIGNED_SECONDS, _DIRECTION_SECONDS = 0.025, 8e-7, 5e-5
"""Of a cluster that is tried, in 39 groupings; of contexts squared, in clouds, which have as many coordinates
as contexts; of a context, in the sketches."""

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
    count: int
    """All nodes, one per position where positions are kept."""
    width: int
    """Nodes of a position."""
    numbers: int
    """That the nodes of a position have."""
    weights: int
    """Of the sets' encoders; few features are decoded."""
    above: float
    """Share of the model's layers from the lowest with nodes on: sweeps and ablated passes go no lower."""
    mean_above: float
    """Share of the model's layers from a layer of nodes on, on average over them."""
    strong_above: float
    """The same of the strongest nodes, where passes that patch them begin: they lie high."""

    def ranked(self, command: DiscoverDatasetCircuit) -> int:
        """Count nodes that can have an effect: exact patching measures so many, however many there are."""
        exact = command.estimator is Estimator.EXACT
        return min(self.count, command.exact_nodes) if exact else self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """Passes of contexts, in whole passes of the model, sweeps counted as passes."""

    tokens: float = 0.0
    """Through the model."""
    encoded: float = 0.0
    """Through the sets."""
    passes: float = 0.0
    """However few tokens they have."""
    ablated: float = 0.0
    """Calls of the model with nodes replaced, wherever they begin."""

    def __add__(self, other: _Work) -> _Work:
        return _Work(
            tokens=self.tokens + other.tokens,
            encoded=self.encoded + other.encoded,
            passes=self.passes + other.passes,
            ablated=self.ablated + other.ablated,
        )

    def times(self, count: float) -> _Work:
        """The same again and again."""
        return _Work(
            tokens=self.tokens * count,
            encoded=self.encoded * count,
            passes=self.passes * count,
            ablated=self.ablated * count,
        )


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
    nodes = _nodes_of(command, info, sets, tokens)
    work = _work(command, tokens, nodes)
    blocks = max(info.n_parameters - info.d_vocab * info.d_model, info.n_parameters // 2)
    head = _FLOAT * info.d_vocab * info.d_model / _READ_BYTES_PER_SECOND
    return DatasetCost(
        seconds=2 * (work.tokens * blocks + work.encoded * nodes.weights) / _FLOPS_PER_SECOND
        + work.passes * info.n_layers * _LAYER_SECONDS
        + work.ablated * (head + nodes.count * _MARKED_SECONDS)
        + _draw_seconds(command, tokens, nodes)
        + _cluster_seconds(command),
        memory_bytes=_passing(command, info, tokens, nodes)
        + _FLOAT * _averages(command, nodes.count)
        + _RANKED_BYTES * nodes.count,
        tokens=max(1, round(work.tokens)),
    )


def guessed_tokens(command: DiscoverDatasetCircuit) -> ContextTokens:
    """Guess the lengths of contexts without a tokenizer, rather too long than too short."""
    training, twins = _guessed(command.training)
    held_out, held_twins = _guessed(command.held_out)
    return ContextTokens(
        longest=max((*training, *twins, *held_out, *held_twins)),
        longest_training=max((*training, *twins)),
        training=sum(training),
        twins=sum(twins),
        held_out=sum(held_out),
    )


def _guessed(split: tuple[Example, ...]) -> tuple[list[int], list[int]]:
    """Return lengths of contexts, and of their twins."""
    twins = [tokens_of(one.corrupted) for one in split if one.corrupted is not None]
    return [tokens_of(one.clean) for one in split], twins


def _passing(command: DiscoverDatasetCircuit, info: ModelInfo, tokens: ContextTokens, nodes: _Nodes) -> int:
    """Bytes of a pass with its twin, or of a held-out one: it has no gradients, its twin no frozen network.

    Held-out contexts that are put to clusters are run as those that circuits are found on.
    """
    longest = tokens.longest_training if command.clusters == 1 else tokens.longest
    rows = max(longest, min(_PACK_TOKENS, tokens.training))
    held_rows = max(tokens.longest, min(_PACK_TOKENS, tokens.held_out))
    found = rows * (_STATES * nodes.numbers + 2 * info.n_layers * frozen_numbers(rows, info))
    measured = held_rows * (
        _STATES_HELD_OUT * nodes.numbers + info.n_layers * frozen_numbers(held_rows, info)
    )
    return _FLOAT * max(found, measured)


def _work(command: DiscoverDatasetCircuit, tokens: ContextTokens, nodes: _Nodes) -> _Work:
    """Count what passes: for means, effects, edges and figures, once more for all clusters together."""
    groups = 1 if command.clusters == 1 else 2
    effects, candidates = _effects(command, nodes), _Work()
    if command.estimator is Estimator.EXACT:
        candidates = _once(_RUNS + _SWEEP * nodes.above)
    of_training = effects.times(groups) + candidates
    of_held_out = _figures(command, nodes).times(groups)
    if command.clusters != 1:
        of_held_out += effects  # of every held-out context too: the nearest centre is told by them
    work = _over(of_training, tokens.training) + _over(of_held_out, tokens.held_out)
    work += _edges(command, tokens, nodes).times(groups)
    if NodeAblation.MEAN in (command.patch, *command.ablations):
        work += _over(_once(1.0), tokens.training) + _over(_once(1.0), tokens.twins)
    return work


def _once(passes: float) -> _Work:
    """Passes of one token."""
    return _Work(tokens=passes, encoded=passes, passes=passes)


def _over(work: _Work, tokens: int) -> _Work:
    """What is done for every token, and for every pass that they lie side by side in."""
    packs = _packs(tokens)
    return _Work(
        tokens=work.tokens * tokens,
        encoded=work.encoded * tokens,
        passes=work.passes * packs,
        ablated=work.ablated * packs,
    )


def _effects(command: DiscoverDatasetCircuit, nodes: _Nodes) -> _Work:
    """Count passes of one token for the effects of all nodes."""
    if command.estimator is Estimator.INTEGRATED_GRADIENTS:
        # The first step is the clean run; sweeps end at the layer that was moved.
        moved = nodes.layers * (command.steps - 1 + command.steps * nodes.mean_above)
        return _once(_RUNS + moved)
    if command.estimator is Estimator.EXACT:
        count = nodes.ranked(command)
        return _once(_RUNS + count * nodes.strong_above) + _Work(ablated=count)
    return _once(_RUNS + _SWEEP * nodes.above)


def _figures(command: DiscoverDatasetCircuit, nodes: _Nodes) -> _Work:
    """Count passes of one held-out token: the model, its twin where needed, and per ablation all circuits."""
    size = command.size
    budgets = (max(1, nodes.ranked(command)) - 1).bit_length() + 1 if size.curve else 0
    with_complement = 1 + (command.stability.draws > 0) + budgets
    circuits = len(command.ablations) * (2 * with_complement + size.random_circuits + 1)
    runs = 1 + (NodeAblation.RESAMPLE in command.ablations)
    ablated = _Work(
        tokens=circuits * nodes.above, encoded=circuits, passes=circuits * nodes.above, ablated=circuits
    )
    return _once(runs) + ablated


def _edges(command: DiscoverDatasetCircuit, tokens: ContextTokens, nodes: _Nodes) -> _Work:
    """Count the sweeps of targets, each from its layer down to the lowest: half of one on average."""
    size = command.size
    targets = min(size.edge_nodes, size.nodes, nodes.ranked(command))
    if not targets:
        return _Work()
    examples = size.edge_examples * _groups(command)
    read = min(tokens.training, tokens.longest_training * examples)
    swept = targets * nodes.above / 2  # through the model alone: few features are decoded
    return _over(_once(_RUNS + _SWEEP * nodes.above) + _Work(tokens=swept, passes=swept), read)


def _packs(tokens: int) -> int:
    return -(-tokens // _PACK_TOKENS)


def _groups(command: DiscoverDatasetCircuit) -> int:
    """Clusters that have a circuit of their own, at most."""
    return _MOST_CLUSTERS if command.clusters == AUTO_CLUSTERS else command.clusters


def _draw_seconds(command: DiscoverDatasetCircuit, tokens: ContextTokens, nodes: _Nodes) -> float:
    """Return what draws take: sums over each, of all contexts and of every cluster, and selections."""
    circuits = 1 if command.clusters == 1 else 1 + _groups(command)
    summed = _packs(tokens.training) * _SUMMED_SECONDS
    return circuits * command.stability.draws * (_DRAW_SECONDS + nodes.count * (summed + _DRAWN_SECONDS))


def _cluster_seconds(command: DiscoverDatasetCircuit) -> float:
    """Return what grouping contexts takes, with the clouds that the groups are held against."""
    if command.clusters == 1:
        return 0.0
    contexts = len(command.training)
    sampled = min(contexts, _SAMPLED_CONTEXTS)
    auto = command.clusters == AUTO_CLUSTERS
    counts = range(2, _MOST_CLUSTERS + 1) if auto else (command.clusters,)
    one_count = sampled**3 * _SILHOUETTE_SECONDS + contexts * _COUNT_SECONDS
    one_cluster = _CLUSTER_SECONDS + sampled**2 * _ASSIGNED_SECONDS + contexts * _DIRECTION_SECONDS
    return sampled**3 * _AXES_SECONDS + len(counts) * one_count + sum(counts) * one_cluster


def _averages(command: DiscoverDatasetCircuit, nodes: int) -> int:
    """Numbers that are kept of effects: sums over parts, what a pass adds to them, sketches of contexts."""
    parts = 1 + command.stability.draws
    if command.clusters == 1:
        return 2 * parts * nodes + len(command.training) * _SKETCH
    return (1 + 2 * _groups(command)) * parts * nodes + 3 * len(command.training) * _SKETCH


def _nodes_of(command: DiscoverDatasetCircuit, info: ModelInfo, sets: Sets, tokens: ContextTokens) -> _Nodes:
    only, layers, width, numbers, weights = command.layers or None, list[int](), 0, 0, 0
    of_sets: list[int] = []
    for name in (command.replacement, *command.beside):
        if name == ERRORS:
            layers, width = layers + of_sets, width + len(of_sets)
            numbers += len(of_sets) * info.d_model
            continue
        if name == HEADS:
            counts = dict.fromkeys(feature_counts(NEURONS, info, {}, only), info.n_heads)
            numbers += len(counts) * info.d_model
        else:
            counts = feature_counts(name, info, sets, only)
            numbers += sum(counts.values())
            of_sets += [] if name == NEURONS else list(counts)
            opened = (one for one in sets.get(name, ()) if one.layer in counts)
            weights += sum(one.d_sae * one.d_in for one in opened)
        layers, width = layers + list(counts), width + sum(counts.values())
    slots = (tokens.longest_training - 1) if command.positions is PositionRule.KEPT else 1
    shares = [(info.n_layers - layer) / info.n_layers for layer in layers] or [1.0]
    return _Nodes(
        layers=len(layers),
        count=max(1, width * slots),
        width=width,
        numbers=numbers,
        weights=weights,
        above=max(shares),
        mean_above=sum(shares) / len(shares),
        strong_above=(sum(shares) / len(shares) + min(shares)) / 2,
    )


@predict_beside.register
def _(command: DiscoverDatasetCircuit, info: ModelInfo, sets: Sets) -> Cost:
    """What admission holds it to: as predicted, of contexts whose lengths are guessed."""
    cost = dataset_circuit_cost(command, info, sets, guessed_tokens(command))
    return Cost(tokens=cost.tokens, memory_bytes=cost.memory_bytes)
