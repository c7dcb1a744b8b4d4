"""A graph over replacement sets, as `trephine.engine.attribution.expansion` grows it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from trephine.domain.sweeps import SCORES_PER_SWEEP, feature_targets_per_sweep
from trephine.engine.attribution.expansion import check_sums
from trephine.engine.attribution.influence import LOGIT, Row
from trephine.engine.attribution.operators import FrozenOperators
from trephine.engine.attribution.row_blocks import RowBlock
from trephine.engine.attribution.target_rows import joined_rows, parts_from_the_top
from trephine.engine.attribution.targets import Explained
from trephine.engine.graphs.actives import ActiveFeatures
from trephine.engine.graphs.edge_room import EdgeRoom, edge_room
from trephine.engine.graphs.stored_edges import stored_rows
from trephine.engine.graphs.sweeping import FeatureSums, segment_of, sweep_features
from trephine.engine.graphs.tabled_sweep import reads_attention, sweep_over_tables
from trephine.engine.graphs.tabled_targets import TabledReads, tabled_reads
from trephine.engine.graphs.tables import SweepTables, is_tabled, sweep_tables
from trephine.engine.graphs.targets import FeatureTargets, feature_targets, read_targets
from trephine.engine.graphs.writes import Writes
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.memory import MemoryMeter


@dataclass(frozen=True, slots=True)
class _Tabled:
    """A prompt laid out for a GPU."""

    sweep: SweepTables
    reads: TabledReads


@dataclass(slots=True)
class Layout:
    """How one prompt is swept; settled before its targets are."""

    tabled: _Tabled | None = None


@dataclass(frozen=True, kw_only=True)
class FeatureBasis:
    """The active features of one prompt under loaded sets."""

    hosted: HostedModel
    operators: FrozenOperators
    active: ActiveFeatures
    explained: Explained
    """The targets."""
    meter: MemoryMeter
    max_nodes: int
    """Features that will be expanded at most; decides how much of a row is sure to be stored."""
    writes: Writes = field(default_factory=Writes)
    """What the features write, gathered once where it is little."""
    layout: Layout = field(default_factory=Layout)

    @cached_property
    def room(self) -> EdgeRoom:
        """For the edges of all rows."""
        rows = min(self.max_nodes, self.active.count) + len(self.explained.targets)
        return edge_room(rows, self.active.count, self.device)

    @property
    def cells(self) -> ActiveFeatures:
        """Every active feature."""
        return self.active

    @property
    def device(self) -> torch.device:
        """Rows stay where they are attributed until the graph is grown."""
        return self.operators.device

    def target_rows(self) -> Generator[None, None, list[Row]]:
        """Lay the prompt out, and attribute the targets, in batches that share a stretch of the stream."""
        if is_tabled(self.active, self.operators):
            with torch.inference_mode():
                reads = tabled_reads(self.hosted, self.operators, self.active)
            tables = yield from sweep_tables(self.hosted, self.operators, self.active)
            self.layout.tabled = _Tabled(tables, reads)
        parts = parts_from_the_top(self.explained)
        segments = segment_of(self.active, torch.tensor([part.place for _, part in parts]))
        found: list[tuple[int, Row]] = []
        for segment in segments.unique().tolist():
            own = [pair for pair, number in zip(parts, segments.tolist(), strict=True) if number == segment]
            targets = read_targets(self.operators, [part for _, part in own])
            block = yield from self._attribute(targets, [LOGIT] * len(own))
            found += zip([number for number, _ in own], block.rows(self._every()), strict=True)
        return joined_rows(self.explained, found)

    def _every(self) -> Tensor:
        """Mask of all sources, on the rows' device."""
        return torch.ones(self.active.count, dtype=torch.bool, device=self.device)

    def feature_rows(self, cells: Tensor) -> Generator[None, None, list[RowBlock]]:
        """Attribute features, in batches that share positions and a stretch of the stream."""
        blocks: list[RowBlock] = []
        for batch in self._batches(cells):
            if self.layout.tabled is None:
                targets = feature_targets(self.hosted, self.operators, self.active, batch)
            else:
                targets = self.layout.tabled.reads.targets(batch)
            ordered = batch[self._order(batch)]
            blocks.append((yield from self._attribute(targets, ordered.tolist())))
        return blocks

    def _order(self, cells: Tensor) -> Tensor:
        """Sort as `feature_targets` does: from the top down, as given within a layer of a set."""
        return self.active.owner[cells].argsort(descending=True, stable=True)

    def _batches(self, cells: Tensor) -> Iterator[Tensor]:
        """Split by segment, then by position, so that cones pad little, then by size."""
        segments = segment_of(self.active, self.active.places(cells))
        size = self._targets_per_sweep()
        for segment in segments.unique().tolist():
            own = cells[segments == segment]
            position = self.active.position[own]
            yield from own[position.argsort(stable=True)].split(size)

    def _targets_per_sweep(self) -> int:
        tabled = self.layout.tabled
        most = feature_targets_per_sweep(self.operators.n_pos, tabled=tabled is not None)
        width = self.active.count if tabled is None else tabled.sweep.width
        return max(1, min(most, SCORES_PER_SWEEP // max(1, width)))

    def _attribute(self, targets: FeatureTargets, cells: list[int]) -> Generator[None, None, RowBlock]:
        sums = yield from self._swept(targets)
        with torch.inference_mode():
            mass = sums.mass
            check_sums(self.operators, sums.total, targets.total, mass + sums.bias.abs())
            self.meter.sample()
            return stored_rows(targets, cells, sums, mass, self.room)

    def _swept(self, targets: FeatureTargets) -> Generator[None, None, FeatureSums]:
        tabled = self.layout.tabled
        if tabled is not None and not reads_attention(tabled.sweep, targets):
            return sweep_over_tables(tabled.sweep, targets)
        return sweep_features(self.hosted, self.operators, self.active, targets, self.writes)
