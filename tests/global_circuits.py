"""A global circuit as a value, without a model."""

from __future__ import annotations

from dataclasses import replace
from math import nan

from tests.unit.app.house import circuit, node
from trephine.domain.circuits import Circuit, NodeKind
from trephine.domain.findings import Figure
from trephine.domain.global_figures import (
    BaselineComparison,
    EdgeWeighting,
    GlobalBaseline,
    GlobalFigures,
    HeldOutTransfer,
    Measured,
)
from trephine.domain.standings import Standing
from trephine.domain.tokens import Token


def figure(value: float) -> Figure:
    """With an interval."""
    return Figure(name="figure", value=value, low=value - 0.1, high=value + 0.1)


def figures() -> GlobalFigures:
    """Everything measured; one baseline of each verdict."""
    return GlobalFigures(
        weighting=EdgeWeighting.TWERA,
        training=30,
        held_out=10,
        training_tokens=240,
        held_out_tokens=80,
        context_tokens=128,
        features=120,
        active_features=100,
        candidates=60,
        transfer=tuple(
            HeldOutTransfer(
                measured=measured,
                edges=16,
                spearman=figure(0.5),
                comparisons=tuple(
                    BaselineComparison(
                        baseline=baseline,
                        spearman=figure(0.3),
                        difference=figure(0.2),
                        standing=standing,
                        how="16 edges",
                    )
                    for baseline, standing in zip(GlobalBaseline, Standing, strict=True)
                ),
                how="sources ablated",
            )
            for measured in Measured
        ),
        split_half=figure(0.8),
        split_half_overlap=0.7,
        coverage=figure(0.4),
        seed=3,
    )


def global_circuit() -> Circuit:
    """Token -> feature -> feature, and the last one -> logit."""
    nodes = [
        replace(node(NodeKind.FEATURE, influence=0.5, activation=2.0), effect=nan),
        replace(node(NodeKind.FEATURE, influence=0.3, activation=1.0, layer=1), effect=nan),
        replace(node(NodeKind.TOKEN, influence=0.1, layer=-1), feature=7, effect=nan),
        replace(node(NodeKind.LOGIT, influence=0.1, layer=2), feature=9, effect=nan),
    ]
    plain = circuit(nodes, [(2, 0, 0.5), (0, 1, -2.0), (1, 3, 0.25)])
    everywhere = Token(id=-1, raw=b"", display="every position")
    return replace(plain, prompt="", tokens=(everywhere,), edge_rule="twera", across=figures())
