"""Sparse rows of the attribution graph, and the influence of every source on the target.

Rows are normalised by their whole absolute mass, so that what is not selected counts as unexplained. The
graph is a DAG in layer order: influence (Ameisen et al. 2025) is one back-substitution from the top layer
down over the expanded rows (`trephine.engine.attribution.growing`), never a matrix of sources by sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trephine.domain.sites import FeatureRef
from trephine.engine.attribution.backward import RowSums
from trephine.engine.attribution.operators import FrozenOperators
from trephine.engine.attribution.readouts import Targets
from trephine.engine.models.memory import MemoryMeter

FLOOR = 5e-5
"""Neurons below this share of a row's absolute mass are not stored; a row holds at most 1 / FLOOR."""
LOGIT = -1
"""The cell of the first target's row; further targets are -2, -3, ..."""


class Space(Protocol):
    """Flat addresses of a graph's features."""

    @property
    def count(self) -> int:
        """Number of addresses."""
        ...

    @property
    def n_pos(self) -> int:
        """Positions of the prompt."""
        ...

    @property
    def n_errors(self) -> int:
        """Number of error sources."""
        ...

    def split(self, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return layer, position and index of `cells (n,)`."""
        ...

    def refs(self, cells: Tensor) -> list[FeatureRef]:
        """Return the addresses of the features of `cells (n,)`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Flat addresses of neurons: `(layer * n_pos + position) * d_mlp + index`."""

    n_layers: int
    n_pos: int
    d_mlp: int

    @property
    def count(self) -> int:
        """Number of addresses."""
        return self.n_layers * self.n_pos * self.d_mlp

    @property
    def n_errors(self) -> int:
        """Number of opaque MLP outputs."""
        return self.n_layers * self.n_pos

    def split(self, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return layer, position and index of `cells (n,)`."""
        return cells // (self.n_pos * self.d_mlp), cells // self.d_mlp % self.n_pos, cells % self.d_mlp

    def refs(self, cells: Tensor) -> list[FeatureRef]:
        """Return the addresses of `cells (n,)`: of neurons."""
        layer, _, index = (column.tolist() for column in self.split(cells))
        return [FeatureRef(layer=x, index=i) for x, i in zip(layer, index, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One expanded target; on the CPU."""

    cell: int
    """The feature, or `LOGIT` and below for targets."""
    layer: int
    """Rises towards the logits; a row's sources are of rows below."""
    sources: Tensor
    """int32 or int64 `(n,)`, cells; once a graph is grown, those that were expanded."""
    weights: Tensor
    """float32 `(n,)`, contributions of the sources."""
    tokens: Tensor
    """float32 `(n_pos,)`."""
    errors: Tensor
    """float32 `(n_errors,)`."""
    bias: float
    total: float
    mass: float
    """Absolute sum over all sources, stored or not."""
    share: float = 1.0
    """Of a target: its weight among the targets."""
    ranked: int | None = None
    """Influences follow the first so many sources, the large ones; None: all."""


class SparseCollector:
    """Keeps, per target, the neurons above `floor` of the row's absolute mass.

    The mass only grows on the way down, so that no neuron above the floor of the final mass is missed.
    """

    def __init__(
        self, operators: FrozenOperators, meter: MemoryMeter | None = None, floor: float = FLOOR
    ) -> None:
        self._n_pos, self._d_mlp = operators.n_pos, operators.architecture.d_mlp
        self._meter, self._floor = meter, floor
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def collect(self, layer: int, scores: Tensor, mass: Tensor) -> None:
        """Store what is above the floor of the mass so far."""
        large = scores.abs() > (self._floor * mass[: len(scores)])[:, None, None]
        target, position, index = large.nonzero(as_tuple=True)
        cell = (layer * self._n_pos + position) * self._d_mlp + index
        self._parts.append((target.cpu(), cell.cpu(), scores[large].float().cpu()))
        if self._meter is not None:
            self._meter.sample()

    def rows(self, targets: Targets, cells: list[int], sums: RowSums) -> list[Row]:
        """Return one row per target, in order; `cells` names them."""
        mass = sums.mass.float().cpu()
        columns = (
            zip(*self._parts, strict=True) if self._parts else ((torch.zeros(0, dtype=torch.int64),),) * 3
        )
        target, source, weight = (torch.cat(tuple(column)) for column in columns)
        kept = weight.abs() > self._floor * mass[target]
        order = target[kept].argsort(stable=True)
        counts = torch.bincount(target[kept], minlength=len(cells)).tolist()
        sources, weights = source[kept][order].split(counts), weight[kept][order].split(counts)
        return [
            Row(
                cell=cell,
                layer=int(targets.layer[k]),
                sources=sources[k],
                weights=weights[k].float(),
                tokens=sums.tokens[k].float().cpu(),
                errors=sums.errors[k].flatten().float().cpu(),
                bias=float(sums.bias[k]),
                total=float(targets.total[k]),
                mass=float(mass[k]),
            )
            for k, cell in enumerate(cells)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Influence:
    """Shares of the normalised path mass that ends in the target, over all sources."""

    neurons: Tensor
    """float32 `(n_cells,)`, dense."""
    tokens: Tensor
    """float32 `(n_pos,)`."""
    errors: Tensor
    """float32 `(n_errors,)`."""
    all_neurons: float
    """Sum over all neurons, those too small to be stored included."""
