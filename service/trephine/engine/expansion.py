"""Growing the attribution graph from the target: rounds of the most influential unexpanded neurons."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.errors import InternalError
from trephine.engine.attribution import RowSums, sweep
from trephine.engine.influence import LOGIT, Cells, Influence, Row, SparseCollector, frontier, solve_influence
from trephine.engine.memory import MemoryMeter
from trephine.engine.operators import FrozenOperators
from trephine.engine.readouts import LogitReadout, Targets, logit_target, neuron_targets

ROUND = 64
"""Neurons expanded per round (R in DESIGN 5.5)."""
_ROWS_PER_SWEEP = 2048
"""Packed adjoint rows per sweep; bounds the time of a quantum and the memory of a layer's scores."""
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Largest deviation of a row's sum from its target, of the row's mass, by dtype of the weights.

The forward pass rounds to that dtype after every operation (norms of some families to float32 at most).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expansion:
    """The expanded rows and the influences they give."""

    cells: Cells
    rows: tuple[Row, ...]
    """The logit row first, then neurons by the round in which they were expanded."""
    influence: Influence


def expand(
    operators: FrozenOperators, readout: LogitReadout, *, max_nodes: int, meter: MemoryMeter
) -> Generator[Progress | None, None, Expansion]:
    """Expand the target, then up to `max_nodes` neurons in rounds, most influential first.

    Args:
        operators: The frozen network.
        readout: The target.
        max_nodes: Neurons to expand; each expanded neuron is a node of the circuit.
        meter: Samples memory where it is highest.

    Returns:
        The rows and their influences.

    Raises:
        InternalError: If a row does not sum to its target (law 3).
    """
    cells = Cells(n_layers=len(operators.layers), n_pos=operators.n_pos, d_mlp=operators.architecture.d_mlp)
    rows = yield from _attribute(operators, logit_target(operators, readout), [LOGIT], meter)
    influence = solve_influence(rows, cells)
    while len(rows) <= max_nodes:
        chosen = frontier(influence, [row.cell for row in rows[1:]], min(ROUND, max_nodes + 1 - len(rows)))
        if not chosen:
            break
        for batch in _batches(torch.tensor(chosen), cells):
            layer, position, index = cells.split(batch)
            targets = neuron_targets(operators, layer, position, index, "relp_half")
            rows += yield from _attribute(operators, targets, batch.tolist(), meter)
        influence = solve_influence(rows, cells)
        yield Progress(stage="attribution", done=len(rows) - 1, total=max_nodes)
    return Expansion(cells=cells, rows=tuple(rows), influence=influence)


def _attribute(
    operators: FrozenOperators, targets: Targets, cells: list[int], meter: MemoryMeter
) -> Generator[None, None, list[Row]]:
    collector = SparseCollector(operators, meter)
    sums = yield from sweep(operators, targets, collector)
    _check_sums(operators, targets, sums)
    return collector.rows(targets, cells, sums)


def _check_sums(operators: FrozenOperators, targets: Targets, sums: RowSums) -> None:
    tolerance = _TOLERANCE.get(operators.architecture.W_U.dtype, 0.1)
    scale = sums.mass + sums.bias.abs()
    worst = float(((sums.total - targets.total).abs() / scale.clamp_min(1e-12)).max())
    if not worst <= tolerance:
        raise InternalError(
            f"attribution rows miss their targets by {worst:.2e} of their mass; this model's layers do not "
            "obey the laws that attribution rests on: report its configuration",
            deviation=worst,
        )


def _batches(cells: Tensor, space: Cells) -> Iterator[Tensor]:
    """Split a round by position, so that cones pad little, then sort each batch from the top layer down."""
    _, position, _ = space.split(cells)
    by_position = cells[position.argsort(stable=True)].split(max(1, _ROWS_PER_SWEEP // space.n_pos))
    for batch in by_position:
        layer, _, _ = space.split(batch)
        yield batch[layer.argsort(descending=True, stable=True)]
