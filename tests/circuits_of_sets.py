"""A hand-made circuit over two sets: attention's and the MLP's features of the same layers."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.app.house import circuit, node
from trephine.domain.circuits import Circuit, GraphSet, Node, NodeKind

ATTENTION, MLPS = "attn-sae", "tc"


def feature(name: str, layer: int, index: int, position: int = 0, influence: float = 0.25) -> Node:
    """A feature of a set."""
    plain = node(NodeKind.FEATURE, influence=influence, activation=1.5, layer=layer)
    return replace(plain, replacement=name, feature=index, position=position, label="")


def circuit_of_sets() -> Circuit:
    """Token -> attention 0:5 -> transcoder 0:5 -> transcoder 1:2 -> logit; the first also to the logit.

    Both sets have a feature 5 in layer 0 at position 0. The transcoders are the first set.
    """
    nodes = [
        feature(MLPS, 0, 5, influence=0.5),
        feature(ATTENTION, 0, 5, influence=0.75),
        feature(MLPS, 1, 2),
        replace(node(NodeKind.ERROR, influence=0.125), feature=-1),
        replace(node(NodeKind.TOKEN, influence=0.5), layer=-1),
        replace(node(NodeKind.LOGIT, activation=0.75, influence=1.0), layer=2),
    ]
    edges = [(4, 1, 1.0), (1, 0, 2.0), (0, 2, 0.5), (1, 5, 0.25), (2, 5, 1.0), (3, 5, -1.0)]
    return replace(
        circuit(nodes, edges),
        replacement=MLPS,
        edge_rule="exact",
        set_hash="c" * 64,
        beside=(GraphSet(name=ATTENTION, content_hash="a" * 64),),
        layers=(0, 1),
        model="tiny",
    )
