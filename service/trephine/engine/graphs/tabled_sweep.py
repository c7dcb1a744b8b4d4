"""One sweep from the top down over a prompt's tables: what `sweeping` computes, in few calls.

Adjoints lie by position, so that what was written at a position meets them in one batch, and a head's pattern
mixes positions in one product. Targets are sorted from the top down; those that read above a place are a
prefix. A short prompt carries all of them all the way: there is nothing to save.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator

import torch
from torch import Tensor

from trephine.engine.attribution.places import AFTER, ATTENTION, BEFORE, EMBEDDING, MIDDLE, MLP, PER_BLOCK
from trephine.engine.graphs.sweeping import FeatureSums
from trephine.engine.graphs.tables import FoldedAttention, LayerTable, SweepTables, Written
from trephine.engine.graphs.targets import FeatureTargets

_FEW_ROWS = 1 << 11
"""Targets times positions that cost no more than half as many."""


def reads_attention(tables: SweepTables, targets: FeatureTargets) -> bool:
    """True if a target reads what attention adds, and sees the stream below through attention alone."""
    inside = (targets.place >= 0) & (targets.place < PER_BLOCK * len(tables.layers))
    return bool((inside & (targets.place % PER_BLOCK == ATTENTION)).any())


class _TabledSweep:
    """State of one sweep."""

    def __init__(self, tables: SweepTables, targets: FeatureTargets) -> None:
        self.tables, self.targets = tables, targets
        device = tables.embedding.device
        self.n_cone, n = int(targets.position.max()) + 1, len(targets.position)
        self._heights = [-place for place in targets.place.tolist()]  # ascending, for bisection
        self._position = targets.position.to(device)
        self._column = torch.arange(n, device=device)
        self._grows = self.n_cone * n > _FEW_ROWS
        zeros = tables.embedding.new_zeros
        self.adjoint = zeros(self.n_cone, 0 if self._grows else n, tables.embedding.shape[1])
        self.scores = zeros(n, tables.width)
        self.bias = targets.constant.clone()

    def above(self, place: int) -> int:
        """Targets that read above a place."""
        return bisect_left(self._heights, -place)

    def inject(self, place: int) -> None:
        """Start the targets that read at a place of the stream."""
        first, end = self.above(place), self.above(place - 1)
        if first == end:
            return
        if self._grows:
            alive, self.adjoint = (
                self.adjoint,
                self.adjoint.new_zeros(self.n_cone, end, self.adjoint.shape[2]),
            )
            self.adjoint[:, :first] = alive
        rows = self.targets.adjoint[first:end]
        self.adjoint[self._position[first:end], self._column[first:end]] = rows

    def block(self, layer: LayerTable, number: int) -> None:
        """Go down through one block."""
        first = PER_BLOCK * number
        self.inject(first + AFTER)
        routed = None
        if self.above(first + MLP):
            self._meet(layer.written)
            routed = self._skip(layer)
        if layer.parallel:
            if self.above(first + MLP):
                self._attend(layer.attention)
            self._add(routed)
            self.inject(first + MLP)
        else:
            self._add(routed)
            self.inject(first + MLP)
            self.inject(first + MIDDLE)
            if self.above(first + ATTENTION):
                self._attend(layer.attention)
        self.inject(first + BEFORE)

    def _meet(self, written: Written) -> None:
        """Score what was written at an MLP's output."""
        met, width = written.ends[self.n_cone], written.vectors.shape[2]
        adjoint = self.adjoint  # (n_cone, n, d_model)
        if written.positions is not None:
            adjoint = adjoint.index_select(0, written.positions[:met])  # (met, n, d_model)
        own = self.scores[: adjoint.shape[1], written.first : written.first + met * width]
        out = own.unflatten(1, (met, width)).transpose(0, 1)  # (met, n, width)
        torch.bmm(adjoint, written.vectors[:met], out=out)

    def _skip(self, layer: LayerTable) -> Tensor | None:
        """Return what reaches the stream below through the path beside the features."""
        if layer.skip is None:
            return None
        return (self.adjoint @ layer.skip.matrix) * layer.skip.scale[: self.n_cone]

    def _add(self, routed: Tensor | None) -> None:
        if routed is not None:
            self.adjoint += routed

    def _attend(self, attention: FoldedAttention) -> None:
        """Add what attention reads, in place."""
        n_pos, n, d_model = self.adjoint.shape
        if attention.constants is not None:
            at = torch.bmm(self.adjoint, attention.constants[:n_pos])  # (n_pos, n, 1)
            self.bias[:n] += at[:, :, 0].sum(0)
        n_heads, _, d_head = attention.output.shape
        rows = self.adjoint.view(-1, d_model)
        mixed = torch.bmm(rows.expand(n_heads, -1, -1), attention.output)  # (n_heads, n_pos * n, d_head)
        pattern = attention.until(n_pos)  # (n_kv_heads, n_pos, group * n_pos)
        value = torch.bmm(
            pattern, mixed.view(len(pattern), -1, n * d_head)
        )  # (n_kv_heads, n_pos, n * d_head)
        heard = value.view(len(pattern), n_pos * n, d_head).transpose(0, 1).flatten(1)
        rows.addmm_(heard, attention.value)

    def finish(self) -> FeatureSums:
        """Score the embeddings, and put every score where it belongs."""
        tables, n = self.tables, len(self.bias)
        self.inject(EMBEDDING)
        tokens = self.bias.new_zeros(n, tables.n_pos)
        tokens[:, : self.n_cone] = torch.bmm(self.adjoint, tables.embedding[: self.n_cone])[:, :, 0].T
        entries = self.scores.index_select(1, tables.columns).mul_(tables.amounts)
        features = entries
        if not tables.one_each:
            features = entries.new_zeros(n, tables.n_cells)
            # Part by part: what a cell writes at several sites is added in the same order every time.
            for cells, scores in zip(tables.parts, entries.split([*map(len, tables.parts)], 1), strict=True):
                features[:, cells.start : cells.stop] += scores
        errors = self.scores.index_select(1, tables.errors).view(n, -1, tables.n_pos)
        constants = self.scores.index_select(1, tables.constants).sum(1)
        return FeatureSums(features=features, errors=errors, tokens=tokens, bias=self.bias + constants)


def sweep_over_tables(tables: SweepTables, targets: FeatureTargets) -> Generator[None, None, FeatureSums]:
    """Attribute a batch of targets to all sources, one block per quantum.

    Args:
        tables: Of the prompt.
        targets: From the top down; none reads what attention adds.
    """
    with torch.inference_mode():
        state = _TabledSweep(tables, targets)
        state.inject(PER_BLOCK * len(tables.layers))
    for number in reversed(range(len(tables.layers))):
        if state.above(PER_BLOCK * number - 1):
            with torch.inference_mode():
                state.block(tables.layers[number], number)
            yield
    with torch.inference_mode():
        return state.finish()
