"""Sizes of the rounds in which a graph grows."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from trephine.domain.sweeps import TARGETS_PER_ROUND
from trephine.engine.attribution.expansion import expand
from trephine.engine.attribution.influence import LOGIT, Cells, Row
from trephine.engine.attribution.row_blocks import block_of
from trephine.engine.models.quanta import finish

FEATURES = 700


def row(cell, layer, sources):
    """A row that reads its sources with falling weights."""
    weights = torch.linspace(2, 1, len(sources))
    return Row(
        cell=cell,
        layer=layer,
        sources=sources,
        weights=weights,
        tokens=torch.zeros(1),
        errors=torch.zeros(1),
        bias=0.0,
        total=0.0,
        mass=float(weights.sum()) + 1.0,
    )


@dataclass
class Flat:
    """A basis in which the target reads every feature and these read nothing."""

    cells: Cells = field(default_factory=lambda: Cells(n_layers=1, n_pos=1, d_mlp=FEATURES))
    rounds: list[list[int]] = field(default_factory=list)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def target_rows(self):
        """One target."""
        yield
        return [row(LOGIT, 1, torch.arange(FEATURES))]

    def feature_rows(self, cells):
        """Rows without sources."""
        self.rounds.append(cells.tolist())
        yield
        return [block_of([row(cell, 0, torch.zeros(0, dtype=torch.int64)) for cell in cells.tolist()])]


def test_rounds_grow_with_what_is_expanded():
    """The first rounds are small, later ones half of what is expanded; the budget is met, strongest first."""
    basis = Flat()
    expansion = finish(expand(basis, max_nodes=600))
    sizes = [len(cells) for cells in basis.rounds]
    assert sizes == [TARGETS_PER_ROUND, TARGETS_PER_ROUND, TARGETS_PER_ROUND, 96, 144, 168]
    assert [cell for cells in basis.rounds for cell in cells] == list(range(600))
    assert len(expansion.rows) == 601
