"""How much of a graph is explained: replacement and completeness, by two definitions.

circuit-tracer 0.5.0 computes both on the graph as it was cut: the mass of active features that were not
selected vanishes, and errors at position 0 are left out (`graph.compute_graph_scores`), so that its scores
depend on how many nodes were asked for; and its completeness averages over tokens and errors too, which have
no inputs and count as fully explained. The charged scores count all mass that is left out as unexplained, and
average over targets and features alone. Every row is met once, from the top down; no matrix of nodes by nodes
is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.circuits import GraphScores
from trephine.engine.attribution.assembly import NodeOrder
from trephine.engine.attribution.influence import LOGIT, Row

_NOTHING = 1e-10
"""Rows of less mass have no inputs, as in circuit-tracer."""


@dataclass(frozen=True, slots=True)
class _Entering:
    """Absolute contributions that enter one row."""

    nodes: Tensor
    """int64 `(n,)`, numbers of selected features."""
    features: Tensor
    """float64 `(n,)`."""
    tokens: float
    unexplained: float

    @property
    def mass(self) -> float:
        """All of it."""
        return float(self.features.sum()) + self.tokens + self.unexplained


def graph_scores(rows: Sequence[Row], order: NodeOrder) -> GraphScores:
    """Score expanded rows over the nodes of a circuit.

    Args:
        rows: The targets' and the selected features'.
        order: Which features are nodes.
    """
    replacement, completeness = _scores(rows, order, charged=False)
    charged_replacement, charged_completeness = _scores(rows, order, charged=True)
    return GraphScores(
        replacement=replacement,
        completeness=completeness,
        charged_replacement=charged_replacement,
        charged_completeness=charged_completeness,
    )


def _scores(rows: Sequence[Row], order: NodeOrder, *, charged: bool) -> tuple[float, float]:
    influence = torch.zeros(len(order.features), dtype=torch.float64)
    tokens = unexplained = explained = weights = 0.0
    for row in sorted(rows, key=lambda row: -row.layer):
        weight = row.share if row.cell <= LOGIT else float(influence[_place(row.cell, order)])
        entering = _entering(row, order, charged=charged)
        weights += weight
        if entering.mass <= _NOTHING:
            explained += weight
            continue
        share = weight / entering.mass
        influence.index_add_(0, entering.nodes, entering.features * share)
        tokens += share * entering.tokens
        unexplained += share * entering.unexplained
        explained += weight - share * entering.unexplained
    paths = tokens + unexplained
    if not charged:
        explained, weights = explained + paths, weights + paths
    return tokens / paths if paths else 0.0, explained / weights if weights else 0.0


def _entering(row: Row, order: NodeOrder, *, charged: bool) -> _Entering:
    errors = row.errors.double().abs()
    tokens = float(row.tokens.double().abs().sum())
    nodes, features = _selected(row, order)
    if charged:
        # What is neither a selected feature nor a token: errors, position 0 with them, and the unselected.
        unexplained = max(float(errors.sum()), row.mass - float(features.sum()) - tokens)
    else:
        unexplained = float(errors.reshape(-1, order.n_pos)[:, 1:].sum())
    return _Entering(nodes=nodes, features=features, tokens=tokens, unexplained=unexplained)


def _selected(row: Row, order: NodeOrder) -> tuple[Tensor, Tensor]:
    if not len(order.features):
        return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.float64)
    sources = row.sources.long()
    place = torch.searchsorted(order.features, sources).clamp_max(len(order.features) - 1)
    selected = order.features[place] == sources
    return place[selected], row.weights[selected].double().abs()


def _place(cell: int, order: NodeOrder) -> int:
    return int(torch.searchsorted(order.features, cell))
