"""A graph while it grows: its blocks of rows, and the influence of every source over them.

The rows that are expanded form a triangular system in layer order: what reaches a row is its own share of
the target, and what the rows above it give its cell. It is solved densely over the expanded rows alone, and
spread over all sources once. Everything stays on the rows' device.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from trephine.engine.influence import LOGIT, Influence, Row, Space
from trephine.engine.row_blocks import RowBlock


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """Every entry that influences follow, `(n_entries,)` each, on the rows' device."""

    row: Tensor
    """int64, number of the row that it enters."""
    source: Tensor
    """int64, cell."""
    weight: Tensor
    """float32, its contribution."""
    share: Tensor
    """float32, of its row's absolute mass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """What the next round is chosen by."""

    rows: Tensor
    """float32 `(n_rows,)`, the share of the target's path mass that goes through each."""
    neurons: Tensor
    """float32 `(n_cells,)`, of every source that is a feature."""
    all_neurons: Tensor
    """float32, scalar: of all features, those too small to be stored included."""


@dataclass(slots=True, kw_only=True)
class GrowingGraph:
    """Rows that were expanded so far."""

    space: Space
    device: torch.device
    blocks: list[RowBlock] = field(default_factory=list)
    cells: list[int] = field(default_factory=list)
    """Of every row, in order."""
    _flows: list[Flow] = field(default_factory=list)
    _inside: list[Tensor] = field(default_factory=list)
    """Share of each row's mass that enters through features."""
    _number: Tensor = field(init=False)
    """int64 `(n_cells,)`: number of the row of an expanded cell, else -1."""

    def __post_init__(self) -> None:
        self._number = torch.full((self.space.count,), -1, dtype=torch.int64, device=self.device)

    @property
    def n_expanded(self) -> int:
        """Rows of features."""
        return sum(cell > LOGIT for cell in self.cells)

    @property
    def expanded(self) -> Tensor:
        """int64 `(n_expanded,)`, the expanded cells, on the rows' device."""
        return torch.tensor([cell for cell in self.cells if cell > LOGIT], dtype=torch.int64).to(self.device)

    def add(self, block: RowBlock) -> None:
        """Take rows in."""
        first = len(self.cells)
        self.blocks.append(block)
        self.cells += block.cells
        numbers = torch.arange(first, len(self.cells), device=self.device)
        own = torch.tensor([cell > LOGIT for cell in block.cells])
        cells = torch.tensor(block.cells, dtype=torch.int64)[own].to(self.device)
        self._number[cells] = numbers[own.to(self.device)]
        mass = block.mass.to(self.device, torch.float32)
        per_mass = torch.where(mass > 0, 1 / mass, 0.0)
        counts = torch.tensor(block.ranked.counts).to(self.device)
        n_entries = len(block.ranked.weights)
        within = torch.arange(len(counts), device=self.device).repeat_interleave(
            counts, output_size=n_entries
        )
        flow = Flow(
            row=within + first,
            source=block.ranked.sources.long(),
            weight=block.ranked.weights,
            share=block.ranked.weights.abs() * per_mass[within],
        )
        self._flows.append(flow)
        outside = block.tokens.abs().sum(1) + block.errors.abs().sum(1)
        self._inside.append(torch.where(mass > 0, 1 - outside * per_mass, 0.0))

    def flow(self) -> Flow:
        """Put all entries together."""
        columns = [(each.row, each.source, each.weight, each.share) for each in self._flows]
        row, source, weight, share = (torch.cat(column) for column in zip(*columns, strict=True))
        return Flow(row=row, source=source, weight=weight, share=share)

    def ranking(self, flow: Flow) -> Ranking:
        """Solve for the influences over all entries, as `flow` gives them."""
        rows = self._solve(flow)
        neurons = torch.zeros(self.space.count, device=self.device)
        # Accumulating puts sort on a GPU: unlike atomic additions they give the same sums every time.
        neurons.index_put_((flow.source,), rows[flow.row] * flow.share, accumulate=True)
        return Ranking(rows=rows, neurons=neurons, all_neurons=rows @ torch.cat(self._inside))

    def _solve(self, flow: Flow) -> Tensor:
        """Back-substitute from the top down, `(n_rows,)`."""
        layers = torch.tensor([layer for block in self.blocks for layer in block.layers])
        order = layers.argsort(descending=True, stable=True)
        n = len(order)
        place = torch.full((n + 1,), n)  # the last one: where sources go that are not expanded
        place[order] = torch.arange(n)
        place = place.to(self.device)
        given = torch.zeros(n, n + 1, device=self.device)
        # A cell that is not expanded has number -1, and with it the last place.
        given[place[flow.row], place[self._number[flow.source]]] = flow.share
        own = torch.zeros(n, 1)
        own[:, 0] = torch.tensor(self._shares())[order]
        system = given[:, :n].neg_().T  # (I - A)^T but for its diagonal, lower triangular
        solved = torch.linalg.solve_triangular(system, own.to(self.device), upper=False, unitriangular=True)
        return solved[place[:n], 0]

    def _shares(self) -> list[float]:
        shares = chain.from_iterable(block.shares for block in self.blocks)
        return [share if cell <= LOGIT else 0.0 for cell, share in zip(self.cells, shares, strict=True)]

    def frontier(self, ranking: Ranking, count: int) -> Tensor:
        """Return up to `count` unexpanded cells of largest influence, largest first, on the CPU."""
        still_open = torch.where(self._number >= 0, 0.0, ranking.neurons)
        best = still_open.topk(min(count, len(still_open)))
        return best.indices[best.values > 0].cpu()

    def influence(self, ranking: Ranking) -> Influence:
        """Return the influence of every source, on the CPU."""
        tokens = torch.zeros(self.space.n_pos, device=self.device)
        errors = torch.zeros(self.space.n_errors, device=self.device)
        first = 0
        for block in self.blocks:
            mass = block.mass.to(self.device, torch.float32)
            own = ranking.rows[first : first + len(mass)]
            weight = torch.where(mass > 0, own / mass, 0.0)
            tokens += weight @ block.tokens.abs()
            errors += weight @ block.errors.abs()
            first += len(mass)
        return Influence(
            neurons=ranking.neurons.cpu(),
            tokens=tokens.cpu(),
            errors=errors.cpu(),
            all_neurons=float(ranking.all_neurons),
        )

    def rows(self) -> tuple[Row, ...]:
        """Return all rows, in order, on the CPU, with what enters them from one another.

        What enters from features that were not expanded is in a row's mass, and in its remainder.
        """
        expanded = self._number >= 0
        return tuple(row for block in self.blocks for row in block.rows(expanded))
