"""A graph while it grows: its blocks of rows, and the influence of every source over them.

The rows that are expanded form a triangular system in layer order: what reaches a row is its own share of
the target, and what the rows above it give its cell. It is solved densely over the expanded rows alone, and
spread over all sources once. Everything stays on the rows' device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from trephine.engine.attribution.influence import LOGIT, Influence, Row, Space
from trephine.engine.attribution.row_blocks import RowBlock

_TOGETHER = 1 << 24
"""Entries that are put together on a GPU, in copies of what the blocks hold: there calls cost more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What influences follow into consecutive rows; entries lie row by row."""

    first: int
    """Number of its first row."""
    counts: Tensor
    """int64 `(n_rows,)`, entries of each."""
    per_mass: Tensor
    """float32 `(n_rows,)`, 1 / the row's absolute mass; 0 for a row without any."""
    sources: Tensor
    """int32 or int64 `(n_entries,)`, cells."""
    weights: Tensor
    """float32 `(n_entries,)`."""

    @property
    def rows(self) -> slice:
        """Numbers of its rows."""
        return slice(self.first, self.first + len(self.counts))

    def rows_of(self, entries: Tensor) -> Tensor:
        """Return the row, by its place in the piece, of entries `(n,)`."""
        return torch.searchsorted(self.counts.cumsum(0), entries, right=True)

    def joined(self, below: Piece) -> Piece:
        """Put the next piece behind this one."""
        return Piece(
            first=self.first,
            counts=torch.cat([self.counts, below.counts]),
            per_mass=torch.cat([self.per_mass, below.per_mass]),
            sources=torch.cat([self.sources, below.sources]),
            weights=torch.cat([self.weights, below.weights]),
        )


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
    _pieces: list[Piece] = field(default_factory=list)
    _inside: list[Tensor] = field(default_factory=list)
    """Share of each row's mass that enters through features."""
    _number: Tensor = field(init=False)
    """int32 `(n_cells,)`: number of the row of an expanded cell, else -1."""

    def __post_init__(self) -> None:
        self._number = torch.full((self.space.count,), -1, dtype=torch.int32, device=self.device)

    @property
    def n_expanded(self) -> int:
        """Rows of features."""
        return sum(cell > LOGIT for cell in self.cells)

    @property
    def expanded(self) -> Tensor:
        """int64 `(n_expanded,)`, the expanded cells, on the rows' device."""
        return torch.tensor([cell for cell in self.cells if cell > LOGIT], dtype=torch.int64).to(self.device)

    @property
    def pieces(self) -> Iterator[Piece]:
        """All entries that influences follow."""
        yield from self._pieces

    def add(self, block: RowBlock) -> None:
        """Take rows in."""
        first = len(self.cells)
        self.blocks.append(block)
        self.cells += block.cells
        own = [(cell, first + row) for row, cell in enumerate(block.cells) if cell > LOGIT]
        cells, numbers = torch.tensor(own, dtype=torch.int64).view(len(own), 2).T.to(self.device)
        self._number[cells] = numbers.int()
        mass = block.mass.to(self.device, torch.float32)
        per_mass = torch.where(mass > 0, 1 / mass, 0.0)
        outside = block.tokens.abs().sum(1) + block.errors.abs().sum(1)
        self._inside.append(torch.where(mass > 0, 1 - outside * per_mass, 0.0))
        piece = Piece(
            first=first,
            counts=torch.tensor(block.ranked.counts).to(self.device),
            per_mass=per_mass,
            sources=block.ranked.sources,
            weights=block.ranked.weights,
        )
        self._take(piece)

    def _take(self, piece: Piece) -> None:
        """Keep a piece: on a GPU in one with the last, as long as it does not grow too large."""
        last = self._pieces[-1] if self._pieces else None
        apart = last is None or self.device.type == "cpu"
        if last is None or apart or len(last.sources) + len(piece.sources) > _TOGETHER:
            self._pieces.append(piece)
        else:
            self._pieces[-1] = last.joined(piece)

    def ranking(self) -> Ranking:
        """Solve for the influences over all rows."""
        rows = self._solve()
        neurons = torch.zeros(self.space.count, device=self.device)
        for piece in self._pieces:
            scale = rows[piece.rows] * piece.per_mass
            given = scale.repeat_interleave(piece.counts, output_size=len(piece.weights))
            given *= piece.weights.abs()
            if self.device.type == "cpu":
                neurons.index_add_(0, piece.sources, given)
            else:  # Accumulating puts sort: unlike atomic additions they give the same sums every time.
                neurons.index_put_((piece.sources,), given, accumulate=True)
        return Ranking(rows=rows, neurons=neurons, all_neurons=rows @ torch.cat(self._inside))

    def _solve(self) -> Tensor:
        """Back-substitute from the top down, `(n_rows,)`."""
        layers = torch.tensor([layer for block in self.blocks for layer in block.layers])
        order = layers.argsort(descending=True, stable=True)
        n = len(order)
        place, own = torch.empty(n, dtype=torch.int64), torch.tensor(self._shares())[order]
        place[order] = torch.arange(n)
        place = place.to(self.device)
        system = torch.zeros(n, n, device=self.device)  # (I - A)^T but for its diagonal, lower triangular
        for piece in self._pieces:
            number = self._number[piece.sources]
            among = (number >= 0).nonzero().flatten()
            row = piece.rows_of(among)
            share = piece.weights[among].abs_().mul_(piece.per_mass[row])
            system[place[number[among]], place[row + piece.first]] = share.neg_()
        solved = torch.linalg.solve_triangular(
            system, own[:, None].to(self.device), upper=False, unitriangular=True
        )
        return solved[place, 0]

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
