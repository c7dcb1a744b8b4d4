"""Rows that were attributed together, in one piece and on any device; `Row` is one of them on the CPU.

A graph grows by blocks: where calls cost more than work, nothing may be done row by row before the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.engine.attribution.influence import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Entries:
    """Contributions into the rows of a block, row by row."""

    counts: tuple[int, ...]
    """Of each row."""
    sources: Tensor
    """int32 or int64 `(n_entries,)`, cells."""
    weights: Tensor
    """float32 `(n_entries,)`."""

    def among(self, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return row, source and weight of the entries whose source is kept, by a mask `(n_cells,)`."""
        numbers = torch.arange(len(self.counts), device=self.sources.device)
        counts = torch.tensor(self.counts).to(numbers.device)
        row = numbers.repeat_interleave(counts, output_size=len(self.sources))
        own = kept[self.sources].nonzero().flatten()
        return row[own], self.sources[own], self.weights[own]


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

    def rows(self, kept: Tensor) -> Iterator[Row]:
        """Yield the rows, in order, with the sources that are kept, by a mask `(n_cells,)`."""
        heavy, light = self.ranked.among(kept), self.rest.among(kept)
        row, sources, weights = (torch.cat(pair) for pair in zip(heavy, light, strict=True))
        order = row.argsort(stable=True)
        counts, ranked = (
            torch.bincount(each, minlength=len(self.cells)).tolist() for each in (row, heavy[0])
        )
        columns = zip(
            self.cells,
            self.layers,
            self.shares,
            sources[order].cpu().split(counts),
            weights[order].cpu().split(counts),
            ranked,
            self.tokens.cpu().unbind(),
            self.errors.cpu().unbind(),
            *(figures.tolist() for figures in (self.bias, self.total, self.mass)),
            strict=True,
        )
        for cell, layer, share, own, sizes, large, tokens, errors, bias, total, mass in columns:
            yield Row(
                cell=cell,
                layer=layer,
                share=share,
                sources=own,
                weights=sizes,
                ranked=large,
                tokens=tokens,
                errors=errors,
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
