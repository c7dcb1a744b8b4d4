"""A hand-made circuit for the tests of pages, with hostile texts in every place."""

from __future__ import annotations

from array import array

from tests.synthetic_circuits import whole
from trephine.domain.arrays import Array
from trephine.domain.circuits import (
    Circuit,
    CircuitFigures,
    Edges,
    EstimateQuality,
    Node,
    NodeKind,
    PrunedNodes,
    Rows,
)
from trephine.domain.sites import NEURONS
from trephine.domain.targets import ExplainedTarget, TargetKind
from trephine.domain.tokens import Token

HOSTILE = "</script><img src=x onerror=alert(1)>\u2028\x1b[31m\x00\ud83d\u202e&amp;"


def token(number: int, text: str) -> Token:
    return Token(id=number, raw=text.encode("utf-8", "replace"), display=text)


def floats(values: list[float]) -> Array:
    return Array(dtype="float32", shape=(len(values),), data=array("f", values).tobytes())


def ints(values: list[int]) -> Array:
    return Array(dtype="int32", shape=(len(values),), data=array("i", values).tobytes())


def node(kind: NodeKind, layer: int, position: int, feature: int, **values: object) -> Node:
    given = {
        "replacement": NEURONS if kind is NodeKind.FEATURE else "",
        "activation": 0.5,
        "influence": 0.1,
        "effect": 0.25,
        "label": "",
        "promotes": (),
        "suppresses": (),
    }
    return Node(kind=kind, layer=layer, position=position, feature=feature, **(given | values))


def hostile_circuit() -> Circuit:
    """Two neurons, an error, two tokens and a target; edges 3->0, 4->1, 0->5, 1->5, 2->5."""
    return Circuit(
        prompt=HOSTILE,
        tokens=(token(1, HOSTILE), token(2, " store")),
        targets=(
            ExplainedTarget(
                kind=TargetKind.LOGIT,
                label=f"' Mary' over {HOSTILE!r}",
                position=1,
                share=1.0,
                value=2.0,
                token=token(3, " Mary"),
                against=token(4, HOSTILE),
            ),
        ),
        replacement=NEURONS,
        edge_rule="relp_half",
        nodes=(
            node(NodeKind.FEATURE, 0, 0, 7, label=HOSTILE, promotes=(HOSTILE, " Mary"), influence=0.3),
            node(NodeKind.FEATURE, 2, 1, 9, effect=-0.5, influence=0.2),
            node(NodeKind.ERROR, 1, 1, -1),
            node(NodeKind.TOKEN, -1, 0, 1, influence=0.4),
            node(NodeKind.TOKEN, -1, 1, 2, influence=0.2),
            node(NodeKind.LOGIT, 3, 1, 3, influence=1.0, activation=0.9),
        ),
        edges=Edges(
            source=ints([3, 4, 0, 1, 2]), target=ints([0, 1, 5, 5, 5]), weight=floats([1, 2, 3, -4, 0.5])
        ),
        rows=Rows(
            target=ints([0, 1, 5]),
            total=floats([1.5, 2.5, 5.0]),
            bias=floats([0.1, 0.2, 0.3]),
            remainder=floats([0.4, 0.3, 5.2]),
        ),
        quality=EstimateQuality(
            nodes=100,
            slope=0.9,
            slope_low=0.8,
            slope_high=1.0,
            spearman=0.7,
            spearman_low=0.6,
            spearman_high=0.8,
            edge_slope=0.5,
            edge_slope_low=0.4,
            edge_slope_high=0.6,
            edge_spearman=0.3,
            edge_spearman_low=0.2,
            edge_spearman_high=0.4,
            how="single ablations, " + HOSTILE,
            predicted=(1.0,),
            measured=(0.9,),
        ),
        figures=CircuitFigures(
            baseline=5.3,
            selected_share=0.6,
            error_share=0.1,
            active_features=1000,
            selected_features=2,
            seconds=1.0,
            peak_extra_bytes=1,
        ),
        model="models/tiny",
        weight_hash="0" * 64,
        caveats=("position 0 is a sink", HOSTILE),
    )


def everything() -> PrunedNodes:
    return whole(hostile_circuit())
