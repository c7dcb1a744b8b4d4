"""Circuits whose groups are known, and how well a grouping finds them (adjusted mutual information)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import exp, lgamma, log

import numpy as np
from numpy.typing import NDArray

from trephine.domain.arrays import Array
from trephine.domain.circuits import Circuit, CircuitFigures, Edges, Node, NodeKind, Rows
from trephine.domain.sites import NEURONS
from trephine.domain.targets import ExplainedTarget, TargetKind
from trephine.domain.tokens import Token

_TOKENS = 6
_READ = 2
"""Groups or tokens that a group reads."""
_CONSTANT = Token(id=1, raw=b"x", display="x")


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """A circuit and the group of every feature, in the order of its nodes."""

    circuit: Circuit
    truth: tuple[int, ...]

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Nodes of every group."""
        found: dict[int, list[int]] = {}
        for node, group in enumerate(self.truth):
            found.setdefault(group, []).append(node)
        return tuple(tuple(nodes) for _, nodes in sorted(found.items()))


def planted(
    *,
    stages: int = 4,
    per_stage: int = 4,
    members: int = 5,
    noise: float = 0.0,
    conflict: bool = False,
    seed: int = 0,
) -> Planted:
    """Return a circuit of `stages * per_stage` groups over tokens, under one target.

    Each stage spans two layers and holds groups that read other tokens or groups of the stage below than each
    other. Between two groups edges have one sign and are an outer product, so that without noise all members
    have the same sources and goals.

    Args:
        stages: Groups above each other.
        per_stage: Groups side by side, in the same layers.
        members: Features of a group.
        noise: Standard deviation of the logarithm of a factor on every edge.
        conflict: Turn the effects and outgoing edges of every other member round.
        seed: Of all of it.
    """
    random = np.random.default_rng(seed)
    count = stages * per_stage
    size = count * members
    between = _reading(
        random, stages, per_stage
    )  # (count + 1, _TOKENS + count): the last row is the target's
    gain, turn = random.uniform(0.5, 2.0, size), np.ones(size)
    if conflict:
        turn[1::2] = -1.0
    group = np.repeat(np.arange(count), members)
    layer = 2 * (group // per_stage) + np.tile(np.arange(members) % 2, count)
    order = np.lexsort((group, layer))
    gain, turn, group, layer = gain[order], turn[order], group[order], layer[order]
    readers = np.r_[group, count]
    senders = np.r_[group + _TOKENS, np.arange(_TOKENS)]
    sent = np.r_[gain * turn, np.ones(_TOKENS)]
    weight = between[readers][:, senders] * sent * np.r_[random.uniform(0.5, 2.0, size), 1.0][:, None]
    weight *= np.exp(noise * random.normal(size=weight.shape))
    target, source = np.nonzero(weight)
    # Nodes: features, tokens, the target.
    row = np.where(target == size, size + _TOKENS, target)
    effect = _effects(between, count)[group] * gain * turn
    nodes = [_feature(place, int(layer[place]), float(effect[place])) for place in range(size)]
    nodes += [_node(NodeKind.TOKEN, -1, place, 100 + place) for place in range(_TOKENS)]
    nodes.append(_node(NodeKind.LOGIT, 2 * stages, 0, 7))
    edges = Edges(
        source=_array(source.astype(np.int32)),
        target=_array(row.astype(np.int32)),
        weight=_array(weight[target, source].astype(np.float32)),
    )
    return Planted(circuit=_circuit(nodes, edges), truth=tuple(group.tolist()))


def recovered(truth: Planted, groups: Iterable[Sequence[int]]) -> float:
    """Return the adjusted mutual information of found groups with the planted ones; others stand alone."""
    found = {node: number for number, nodes in enumerate(groups) for node in nodes}
    alone = len(truth.truth)
    labels = [found.get(node, alone + node) for node in range(alone)]
    return adjusted_mutual_information(truth.truth, labels)


def adjusted_mutual_information(first: Sequence[int], second: Sequence[int]) -> float:
    """Return how far two partitions agree beyond chance: 1 if they are the same (Vinh et al. 2010)."""
    table = _contingency(first, second)
    total, rows, columns = table.sum(), table.sum(1), table.sum(0)
    filled = table[table > 0] / total
    expected_shares = np.outer(rows, columns)[table > 0] / total**2
    mutual = float((filled * np.log(filled / expected_shares)).sum())
    chance = _expected(rows, columns, int(total))
    largest = (_entropy(rows / total) + _entropy(columns / total)) / 2
    return 1.0 if abs(largest - chance) < 1e-12 else (mutual - chance) / (largest - chance)


def _contingency(first: Sequence[int], second: Sequence[int]) -> NDArray[np.int64]:
    _, a = np.unique(first, return_inverse=True)
    _, b = np.unique(second, return_inverse=True)
    width = int(b.max()) + 1
    return np.bincount(a * width + b, minlength=(int(a.max()) + 1) * width).reshape(-1, width)


def _entropy(shares: NDArray[np.float64]) -> float:
    return float(-(shares * np.log(shares)).sum())


def _expected(rows: NDArray[np.int64], columns: NDArray[np.int64], total: int) -> float:
    """Mutual information of two random partitions of these sizes (hypergeometric)."""
    found = 0.0
    for a in rows.tolist():
        for b in columns.tolist():
            for both in range(max(1, a + b - total), min(a, b) + 1):
                chance = sum(lgamma(n + 1) for n in (a, b, total - a, total - b)) - sum(
                    lgamma(n + 1) for n in (total, both, a - both, b - both, total - a - b + both)
                )
                found += both / total * log(total * both / (a * b)) * exp(chance)
    return found


def _reading(random: np.random.Generator, stages: int, per_stage: int) -> NDArray[np.float64]:
    """Signed weights between groups, tokens and the target: rows read columns (tokens first)."""
    count = stages * per_stage
    between = np.zeros((count + 1, _TOKENS + count))
    for group in range(count):
        stage = group // per_stage
        below = (
            np.arange(_TOKENS)
            if not stage
            else _TOKENS + np.arange((stage - 1) * per_stage, stage * per_stage)
        )
        place = group % per_stage
        for step in range(_READ):  # neighbours in a circle: each is read, and no two groups read the same
            read = below[(place + step) % len(below)]
            between[group, read] = random.choice([-1.0, 1.0]) * (1.0 if step else 3.0)
    between[count, _TOKENS + count - per_stage :] = random.choice([-1.0, 1.0], per_stage) * (
        1 + np.arange(per_stage)
    )
    return between


def _effects(between: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """What each group does to the target, along all paths `(count,)`."""
    effect = np.zeros(count)
    for group in reversed(range(count)):
        read = between[:count, _TOKENS + group]
        effect[group] = between[count, _TOKENS + group] + float(read @ effect)
    return effect


def _feature(place: int, layer: int, effect: float) -> Node:
    node = _node(NodeKind.FEATURE, layer, 0, place)
    return replace(node, effect=effect, influence=0.01, activation=1.0, replacement=NEURONS)


def _node(kind: NodeKind, layer: int, position: int, feature: int) -> Node:
    return Node(
        kind=kind,
        layer=layer,
        position=position,
        feature=feature,
        replacement="",
        activation=0.0,
        influence=0.0,
        effect=0.0,
        label=f"{kind.value} {feature}",
        promotes=(),
        suppresses=(),
    )


def _array(values: NDArray[np.generic]) -> Array:
    return Array(dtype=values.dtype.name, shape=values.shape, data=values.tobytes())  # type: ignore[arg-type]


def _circuit(nodes: Sequence[Node], edges: Edges) -> Circuit:
    empty, no_rows = _array(np.zeros(0, np.float32)), _array(np.zeros(0, np.int32))
    return Circuit(
        prompt="x" * _TOKENS,
        tokens=(_CONSTANT,) * _TOKENS,
        targets=(
            ExplainedTarget(
                kind=TargetKind.LOGIT, label="x", position=_TOKENS - 1, share=1.0, value=1.0, token=_CONSTANT
            ),
        ),
        replacement=NEURONS,
        edge_rule="exact",
        nodes=tuple(nodes),
        edges=edges,
        rows=Rows(target=no_rows, total=empty, bias=empty, remainder=empty),
        quality=None,
        figures=CircuitFigures(
            baseline=1.0,
            selected_share=1.0,
            error_share=0.0,
            active_features=len(nodes),
            selected_features=len(nodes),
            seconds=0.0,
            peak_extra_bytes=0,
        ),
        model="models/planted",
        weight_hash="0" * 64,
        caveats=("Planted: it explains nothing.",),
    )
