"""Rows that were attributed together, in one piece and on any device; `Row` is one of them on the CPU.

A graph grows by blocks: where calls cost more than work, nothing may be done row by row before the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.engine.influence import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Entries:
    """Contributions into the rows of a block, row by row."""

    counts: tuple[int, ...]
    """Of each row."""
    sources: Tensor
    """int32 or int64 `(n_entries,)`, cells."""
    weights: Tensor
    """float32 `(n_entries,)`."""

    def split(self) -> list[tuple[Tensor, Tensor]]:
        """Return each row's sources and weights, on the CPU."""
        columns = (self.sources.cpu().split(self.counts), self.weights.cpu().split(self.counts))
        return list(zip(*columns, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """Expanded targets; see `Row` for what each of them holds."""

    cells: tuple[int, ...]
    layers: tuple[int, ...]
    shares: tuple[float, ...]
    ranked: Entries
    """What influences follow."""
    rest: Entries
    """What else is stored."""
    tokens: Tensor
    """float32 `(n_rows, n_pos)`."""
    errors: Tensor
    """float32 `(n_rows, n_errors)`."""
    bias: Tensor
    """`(n_rows,)`."""
    total: Tensor
    """`(n_rows,)`."""
    mass: Tensor
    """`(n_rows,)`."""

    def rows(self) -> Iterator[Row]:
        """Yield the rows, in order."""
        tokens, errors = self.tokens.cpu(), self.errors.cpu()
        figures = zip(*(each.tolist() for each in (self.bias, self.total, self.mass)), strict=True)
        names = zip(self.cells, self.layers, self.shares, strict=True)
        entries = zip(self.ranked.split(), self.rest.split(), strict=True)
        for number, (name, (heavy, light), (bias, total, mass)) in enumerate(
            zip(names, entries, figures, strict=True)
        ):
            (cell, layer, share), (first, large), (other, small) = name, heavy, light
            yield Row(
                cell=cell,
                layer=layer,
                share=share,
                sources=torch.cat([first, other]) if len(other) else first,
                weights=torch.cat([large, small]) if len(other) else large,
                ranked=len(first),
                tokens=tokens[number],
                errors=errors[number],
                bias=bias,
                total=total,
                mass=mass,
            )


def block_of(rows: Sequence[Row], device: torch.device | str = "cpu") -> RowBlock:
    """Put rows together, at least one, on a device."""
    ends = [len(row.sources) if row.ranked is None else row.ranked for row in rows]
    halves = [
        ((row.sources[:end], row.weights[:end]), (row.sources[end:], row.weights[end:]))
        for row, end in zip(rows, ends, strict=True)
    ]
    return RowBlock(
        cells=tuple(row.cell for row in rows),
        layers=tuple(row.layer for row in rows),
        shares=tuple(row.share for row in rows),
        ranked=_entries([ranked for ranked, _ in halves], device),
        rest=_entries([rest for _, rest in halves], device),
        tokens=torch.stack([row.tokens for row in rows]).to(device),
        errors=torch.stack([row.errors for row in rows]).to(device),
        bias=_figures([row.bias for row in rows], device),
        total=_figures([row.total for row in rows], device),
        mass=_figures([row.mass for row in rows], device),
    )


def _entries(parts: Sequence[tuple[Tensor, Tensor]], device: torch.device | str) -> Entries:
    return Entries(
        counts=tuple(len(sources) for sources, _ in parts),
        sources=torch.cat([sources for sources, _ in parts]).to(device),
        weights=torch.cat([weights for _, weights in parts]).to(device),
    )


def _figures(values: Sequence[float], device: torch.device | str) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).to(device)
