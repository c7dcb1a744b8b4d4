"""Replacement and completeness, worked out by hand."""

from __future__ import annotations

import pytest
import torch

from trephine.engine.attribution.assembly import NodeOrder
from trephine.engine.attribution.influence import LOGIT, Row
from trephine.engine.graphs.scores import graph_scores


def _row(cell: int, layer: int, features: dict[int, float], tokens: list[float], errors: list[float]) -> Row:
    parts = [*features.values(), *tokens, *errors]
    return Row(
        cell=cell,
        layer=layer,
        sources=torch.tensor(list(features), dtype=torch.int32),
        weights=torch.tensor(list(features.values())),
        tokens=torch.tensor(tokens),
        errors=torch.tensor(errors),
        bias=0.0,
        total=sum(parts),
        mass=sum(map(abs, parts)),
    )


def _order(features: list[int]) -> NodeOrder:
    return NodeOrder(features=torch.tensor(features, dtype=torch.int64), errors=torch.arange(2), n_pos=2)


ROWS = (
    _row(LOGIT, 8, {3: -2.0, 5: 1.0}, [0.0, 1.0], [1.0, -1.0]),
    _row(3, 3, {}, [1.0, 2.0], [0.0, 1.0]),
)
"""One target, one selected feature (3), one that is not (5), errors at positions 0 and 1."""


def test_by_circuit_tracers_definition() -> None:
    """Unselected features and errors at position 0 vanish; 5/8 of the paths end in tokens."""
    found = graph_scores(ROWS, _order([3]))
    assert found.replacement == pytest.approx(0.625)
    assert found.completeness == pytest.approx((1.125 + 1.0) / (1.5 + 1.0))  # leaves count as explained


def test_charged_for_everything_that_is_left_out() -> None:
    """Both count as unexplained: 5/12 of the paths end in tokens, 9/16 is explained."""
    found = graph_scores(ROWS, _order([3]))
    assert found.charged_replacement == pytest.approx(5 / 12)
    assert found.charged_completeness == pytest.approx(0.5625)


def test_without_features_the_target_alone_is_scored() -> None:
    """A graph of no feature: tokens 1, errors 1 without position 0; 1 of 6 with everything charged."""
    found = graph_scores(ROWS[:1], _order([]))
    assert (found.replacement, found.charged_replacement) == pytest.approx((0.5, 1 / 6))
