"""Circuits with layers and positions, random and by hand, for the tests of what is asked about circuits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tests.unit.app.house import TOKEN, circuit, column, node
from trephine.domain.circuits import Circuit, Node, NodeKind, Rows
from trephine.domain.tokens import Token


def at(kind: NodeKind, layer: int, position: int, feature: int, **fields: object) -> Node:
    """A node at an address, with a label that says so."""
    made = replace(node(kind, layer=layer), position=position, feature=feature)
    return replace(made, label=f"{kind.value} {layer}:{feature} at {position}", **fields)  # type: ignore[arg-type]


def words(count: int) -> tuple[Token, ...]:
    """Tokens `w0`, `w1`, ..."""
    return tuple(replace(TOKEN, id=100 + n, raw=f"w{n}".encode(), display=f"w{n}") for n in range(count))


def layered(seed: int = 0, *, layers: int = 4, positions: int = 3, per_layer: int = 5) -> Circuit:
    """Features in layers over tokens, an error per layer, one target; rows sum as law 3 wants.

    Every node sends to every higher one with probability 0.6.
    """
    random = np.random.default_rng(seed)
    features = [
        at(NodeKind.FEATURE, layer, int(random.integers(positions)), 10 * layer + number)
        for layer in range(layers)
        for number in range(per_layer)
    ]
    features.sort(key=lambda one: (one.layer, one.position, one.feature))
    features = [
        replace(one, activation=float(random.uniform(0.5, 2)), influence=float(random.uniform(0, 0.3)))
        for one in features
    ]
    errors = [at(NodeKind.ERROR, layer, 0, -1, influence=0.05) for layer in range(layers)]
    tokens = [at(NodeKind.TOKEN, -1, place, 100 + place, influence=0.2) for place in range(positions)]
    target = at(NodeKind.LOGIT, layers, positions - 1, 7, activation=0.8, influence=1.0)
    nodes = [*features, *errors, *tokens, target]
    targets = [*range(len(features)), len(nodes) - 1]
    edges = [
        (source, goal, float(random.normal()))
        for goal in targets
        for source in range(len(nodes) - 1)
        if nodes[source].layer < nodes[goal].layer and random.random() < 0.6
    ]
    made = circuit(nodes, edges)
    entering = np.zeros(len(nodes))
    for _, goal, weight in edges:
        entering[goal] += np.float32(weight)
    bias, remainder = (random.normal(size=len(targets)).astype(np.float32) for _ in range(2))
    rows = Rows(
        target=column("int32", targets),
        total=column("float32", list(entering[targets] + bias + remainder)),
        bias=column("float32", list(bias)),
        remainder=column("float32", list(remainder)),
    )
    return replace(
        made, rows=rows, tokens=words(positions), prompt="".join(f"w{n}" for n in range(positions))
    )
