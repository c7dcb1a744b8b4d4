"""Circuits of any size that look like found ones: heavy tails, causal edges, texts of several scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from trephine.app.circuits.pruning import prune
from trephine.domain.arrays import Array
from trephine.domain.circuits import Circuit, CircuitFigures, Edges, Node, NodeKind, PrunedNodes, Rows
from trephine.domain.targets import ExplainedTarget, TargetKind
from trephine.domain.tokens import Token

WORDS = (
    *("When", " Mary", " and", " John", " went", " to", " the", " store", ",", " John", " gave", " a"),
    *(" drink", " to", ".\n", "\n\n", "\t", " שלום", " עולם", " مرحبا", "東京", "日本", " café", " naïve"),
    *("🙂", " antidisestablishmentarianism", "</script>", '"quoted"', "'", " 12", ":", " if", "();"),
)
SET = "smollm2-135m-tc"


def synthetic_circuit(
    *,
    nodes: int,
    edges: int,
    tokens: int = 48,
    layers: int = 30,
    targets: int = 1,
    words: Sequence[str] = WORDS,
    seed: int = 0,
) -> Circuit:
    """Return a circuit of exactly `nodes` nodes and at most `edges` edges; deterministic in its arguments."""
    rng = np.random.default_rng(seed)
    displays = [words[place % len(words)] for place in range(tokens)]
    made = _nodes(nodes, displays, layers, targets, rng)
    source, target = _ends(made, edges, rng)
    weight = (rng.standard_t(2, len(source)) * 0.2).astype(np.float32)
    rows = np.unique(target)
    return Circuit(
        prompt="".join(displays),
        tokens=tuple(_token(text) for text in displays),
        targets=_targets(made),
        replacement=SET,
        edge_rule="exact",
        nodes=tuple(made),
        edges=Edges(source=_array(source), target=_array(target), weight=_array(weight)),
        rows=Rows(
            target=_array(rows),
            total=_floats(rng, len(rows)),
            bias=_floats(rng, len(rows)),
            remainder=_floats(rng, len(rows)),
        ),
        quality=None,
        figures=CircuitFigures(
            baseline=5.3,
            selected_share=0.6,
            error_share=0.1,
            active_features=9 * nodes,
            selected_features=sum(node.kind is NodeKind.FEATURE for node in made),
            seconds=1.0,
            peak_extra_bytes=1,
        ),
        model="models/synthetic",
        weight_hash="5" * 64,
        caveats=("Synthetic: it explains nothing.",),
    )


def _targets(nodes: list[Node]) -> tuple[ExplainedTarget, ...]:
    """Of one target a difference, of several tokens weighted by probability."""
    logits = [node for node in nodes if node.kind is NodeKind.LOGIT]
    total = sum(node.activation for node in logits)
    return tuple(
        ExplainedTarget(
            kind=TargetKind.LOGIT,
            label=node.label,
            position=node.position,
            share=node.activation / total,
            value=1.0,
            token=_token(" Mary" if len(logits) == 1 else node.label),
            against=_token(" John") if len(logits) == 1 else None,
        )
        for node in logits
    )


def whole(circuit: Circuit) -> PrunedNodes:
    """Keep everything."""
    return replace(
        prune(circuit, node_threshold=1.0, edge_threshold=1.0),
        nodes=tuple(range(len(circuit.nodes))),
        edges=tuple(range(circuit.edges.source.shape[0])),
    )


def _nodes(
    count: int, displays: Sequence[str], layers: int, targets: int, rng: np.random.Generator
) -> list[Node]:
    """Features and errors gather at few, mostly late positions, as found ones do."""
    tokens = len(displays)
    inner = max(0, count - tokens - targets)
    liked = rng.gamma(0.7, size=tokens) * np.linspace(0.4, 1.6, tokens) + 1e-3
    where = rng.choice(tokens, size=inner, p=liked / liked.sum())
    depth = np.minimum((rng.beta(1.2, 1.0, inner) * layers).astype(int), layers - 1)
    influence = np.sort(rng.pareto(1.5, inner) + 0.01)[::-1]
    influence /= max(influence.sum(), 1e-9)
    found, taken = [], set()
    for place in range(inner):
        layer, position = int(depth[place]), int(where[place])
        error = place % 12 == 11 and (layer, position) not in taken
        if error:
            taken.add((layer, position))
        text = displays[int(rng.integers(tokens))]
        found.append(
            _node(
                NodeKind.ERROR if error else NodeKind.FEATURE,
                layer,
                position,
                -1 if error else 17 * place + 5,
                influence=float(influence[place]),
                effect=float(rng.normal() * influence[place] * 20),
                activation=float(rng.gamma(2.0)),
                label="" if error or place % 3 else f"mentions of {text.strip() or 'a gap'}",
                promotes=() if error else (text, " Mary", " her"),
                suppresses=() if error else (" John",),
            )
        )
    found.sort(key=lambda node: (node.kind is NodeKind.ERROR, node.layer, node.position, node.feature))
    found += [
        _node(NodeKind.TOKEN, -1, place, 100 + place, influence=0.5 / tokens, label=text)
        for place, text in enumerate(displays)
    ]
    return found + [
        _node(
            NodeKind.LOGIT,
            layers,
            tokens - 1,
            900 + place,
            influence=1.0 / targets,
            activation=0.7 / (place + 1),
            label=f"{displays[-1 - place]} (p={0.7 / (place + 1):.2f})",
        )
        for place in range(targets)
    ]


def _ends(
    nodes: Sequence[Node], count: int, rng: np.random.Generator
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Distinct causal pairs: from below or the left, into features and targets, sorted by target."""
    height = np.array([-1 if n.kind is NodeKind.TOKEN else n.layer for n in nodes])
    position = np.array([n.position for n in nodes])
    takes = np.array([n.kind in (NodeKind.FEATURE, NodeKind.LOGIT) for n in nodes])
    into = rng.choice(np.flatnonzero(takes), size=6 * count)
    out = rng.choice(len(nodes), size=6 * count)
    causal = (height[out] < height[into]) & (position[out] <= position[into])
    pairs = np.unique(into[causal].astype(np.int64) * len(nodes) + out[causal])
    pairs = np.sort(rng.permutation(pairs)[:count])
    return (pairs % len(nodes)).astype(np.int32), (pairs // len(nodes)).astype(np.int32)


def _node(kind: NodeKind, layer: int, position: int, feature: int, **given: object) -> Node:
    values = {
        "activation": 0.0,
        "influence": 0.0,
        "effect": 0.0,
        "label": "",
        "promotes": (),
        "suppresses": (),
    }
    replacement = SET if kind is NodeKind.FEATURE else ""
    return Node(
        kind=kind,
        layer=layer,
        position=position,
        feature=feature,
        replacement=replacement,
        **(values | given),  # type: ignore[arg-type]
    )


def _token(text: str) -> Token:
    return Token(id=1, raw=text.encode("utf-8", "replace"), display=text)


def _array(values: NDArray[np.generic]) -> Array:
    column = values.astype(np.float32 if values.dtype.kind == "f" else np.int32)
    return Array(dtype=column.dtype.name, shape=column.shape, data=column.tobytes())  # type: ignore[arg-type]


def _floats(rng: np.random.Generator, count: int) -> Array:
    return _array(rng.normal(size=count).astype(np.float32))
