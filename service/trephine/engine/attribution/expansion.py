"""Growing an attribution graph from its targets: rounds of the most influential unexpanded features."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from math import isfinite
from time import monotonic
from typing import Protocol

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.errors import InternalError, NonFiniteValueError
from trephine.domain.sweeps import TARGETS_PER_ROUND, neuron_targets_per_sweep
from trephine.engine.attribution.backward import RowSums, sweep
from trephine.engine.attribution.growing import GrowingGraph, Ranking
from trephine.engine.attribution.influence import (
    LOGIT,
    Cells,
    Influence,
    Row,
    Space,
    SparseCollector,
)
from trephine.engine.attribution.operators import FrozenOperators
from trephine.engine.attribution.partials import partial_circuit
from trephine.engine.attribution.readouts import Targets, neuron_targets
from trephine.engine.attribution.row_blocks import RowBlock, block_of
from trephine.engine.attribution.target_rows import joined_rows, parts_from_the_top
from trephine.engine.attribution.targets import Explained, neuron_targets_of
from trephine.engine.models.memory import MemoryMeter

_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Largest deviation of a row's sum from its target, of the row's mass, by dtype of the weights.

The forward pass rounds to that dtype after every operation (norms of some families to float32 at most).
"""


PARTIAL_SECONDS = 0.1
"""On a GPU a watcher is shown the growing graph no more often but for the last round: rounds are shorter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expansion:
    """The expanded rows and the influences they give."""

    cells: Space
    rows: tuple[Row, ...]
    """The targets' rows first, then features by the round in which they were expanded."""
    influence: Influence


class Basis(Protocol):
    """What a graph is spanned by: the model's neurons, or the active features of a set."""

    @property
    def cells(self) -> Space:
        """Addresses of its features."""
        ...

    @property
    def device(self) -> torch.device:
        """Where blocks of rows are."""
        ...

    def target_rows(self) -> Generator[None, None, list[Row]]:
        """Attribute the targets; one block per quantum."""
        ...

    def feature_rows(self, cells: Tensor) -> Generator[None, None, list[RowBlock]]:
        """Attribute features `cells (n,)`, in any order; one block per quantum."""
        ...


def expand(basis: Basis, *, max_nodes: int) -> Generator[Progress | None, None, Expansion]:
    """Expand the targets, then up to `max_nodes` features in rounds, most influential first.

    Args:
        basis: What is expanded.
        max_nodes: Features to expand; each expanded one is a node of the circuit.

    Returns:
        The rows and their influences.

    Raises:
        InternalError: If a row does not sum to its target (law 3).
    """
    growth = _Growth(basis, total=max_nodes)
    yield from growth.root()
    while growth.expanded < max_nodes:
        room = min(max(TARGETS_PER_ROUND, growth.expanded // 2), max_nodes - growth.expanded)
        chosen = growth.frontier(room)
        if not len(chosen):
            break
        yield from growth.expand(chosen)
    return growth.expansion()


def expand_chosen(basis: Basis, cells: Tensor) -> Generator[Progress | None, None, Expansion]:
    """Expand the targets and features that were chosen elsewhere, `cells (n,)`, a round at a time.

    Raises:
        InternalError: If a row does not sum to its target (law 3).
    """
    growth = _Growth(basis, total=len(cells))
    yield from growth.root()
    for chosen in cells.split(TARGETS_PER_ROUND) if len(cells) else ():
        yield from growth.expand(chosen)
    return growth.expansion()


class _Growth:
    """A graph that is grown round by round, ranked after each, and shown from time to time."""

    def __init__(self, basis: Basis, *, total: int) -> None:
        self._basis, self._total = basis, total
        self._graph = GrowingGraph(space=basis.cells, device=basis.device)
        self._ranking: Ranking | None = None
        self._shown = -PARTIAL_SECONDS

    @property
    def expanded(self) -> int:
        """Features so far."""
        return self._graph.n_expanded

    def root(self) -> Generator[None, None, None]:
        """Begin with the targets."""
        rows = yield from self._basis.target_rows()
        with torch.inference_mode():
            self._graph.add(block_of(rows, self._basis.device))
            self._ranking = self._graph.ranking()

    def frontier(self, count: int) -> Tensor:
        """Return up to `count` cells to be expanded next, on the CPU."""
        with torch.inference_mode():
            return self._graph.frontier(self._ranked(), count)

    def expand(self, chosen: Tensor) -> Generator[Progress | None, None, None]:
        """Expand a round of features and rank again."""
        blocks = yield from self._basis.feature_rows(chosen)
        graph, partial = self._graph, None
        with torch.inference_mode():
            for block in blocks:
                graph.add(block)
            self._ranking = graph.ranking()
            if self._is_due():
                partial = partial_circuit(graph, self._ranking)
                self._shown = monotonic()
        yield Progress(stage="attribution", done=graph.n_expanded, total=self._total, partial=partial)

    def _is_due(self) -> bool:
        """True if a partial graph is shown after this round."""
        last = self._graph.n_expanded >= self._total
        return last or self._graph.device.type == "cpu" or monotonic() - self._shown >= PARTIAL_SECONDS

    def expansion(self) -> Expansion:
        """End the growth."""
        graph = self._graph
        with torch.inference_mode():
            influence = graph.influence(self._ranked())
            return Expansion(cells=graph.space, rows=graph.rows(), influence=influence)

    def _ranked(self) -> Ranking:
        if self._ranking is None:
            raise InternalError("a graph is ranked when it has its targets")
        return self._ranking


@dataclass(frozen=True, slots=True, kw_only=True)
class NeuronBasis:
    """The model's own neurons, explained by `relp_half`."""

    operators: FrozenOperators
    explained: Explained
    """The targets."""
    meter: MemoryMeter

    @property
    def cells(self) -> Cells:
        """Every neuron at every position."""
        operators = self.operators
        return Cells(
            n_layers=len(operators.layers), n_pos=operators.n_pos, d_mlp=operators.architecture.d_mlp
        )

    @property
    def device(self) -> torch.device:
        """Rows of neurons are stored on the CPU."""
        return torch.device("cpu")

    def target_rows(self) -> Generator[None, None, list[Row]]:
        """Attribute the targets."""
        parts = parts_from_the_top(self.explained)
        targets = neuron_targets_of(self.operators, [part for _, part in parts])
        rows = yield from self._attribute(targets, [LOGIT] * len(parts))
        return joined_rows(self.explained, list(zip([number for number, _ in parts], rows, strict=True)))

    def feature_rows(self, cells: Tensor) -> Generator[None, None, list[RowBlock]]:
        """Attribute neurons, in batches that share positions."""
        blocks: list[RowBlock] = []
        for batch in _batches(cells, self.cells):
            targets = neuron_targets(self.operators, *self.cells.split(batch), "relp_half")
            blocks.append(block_of((yield from self._attribute(targets, batch.tolist()))))
        return blocks

    def _attribute(self, targets: Targets, cells: list[int]) -> Generator[None, None, list[Row]]:
        collector = SparseCollector(self.operators, self.meter)
        sums = yield from sweep(self.operators, targets, collector)
        _check_sums(self.operators, targets, sums)
        return collector.rows(targets, cells, sums)


def _check_sums(operators: FrozenOperators, targets: Targets, sums: RowSums) -> None:
    check_sums(operators, sums.total, targets.total, sums.mass + sums.bias.abs())


def check_sums(operators: FrozenOperators, found: Tensor, expected: Tensor, scale: Tensor) -> None:
    """Hold rows to law 3.

    Raises:
        NonFiniteValueError: If a row is no number.
        InternalError: If a row's sum misses its target by more than rounding explains.
    """
    tolerance = _TOLERANCE.get(operators.architecture.W_U.dtype, 0.1)
    worst = float(((found - expected).abs() / scale.clamp_min(1e-12)).max())
    if not isfinite(worst):
        raise NonFiniteValueError(
            "what enters a target adds up to no number: it, or what is explained, is larger than the dtype "
            "holds. Load the model as float32, or scale a direction down"
        )
    if not worst <= tolerance:
        raise InternalError(
            f"attribution rows miss their targets by {worst:.2e} of their mass; this model's layers do not "
            "obey the laws that attribution rests on: report its configuration",
            deviation=worst,
        )


def _batches(cells: Tensor, space: Space) -> Iterator[Tensor]:
    """Split a round by position, so that cones pad little, then sort each batch from the top layer down."""
    _, position, _ = space.split(cells)
    by_position = cells[position.argsort(stable=True)].split(neuron_targets_per_sweep(space.n_pos))
    for batch in by_position:
        layer, _, _ = space.split(batch)
        yield batch[layer.argsort(descending=True, stable=True)]
