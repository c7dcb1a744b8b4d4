"""Which nodes there are, and flat vectors over them: one number per feature, or per feature and position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from trephine.domain.dataset_circuits import PositionRule
from trephine.domain.interventions import ErrorTerm
from trephine.engine.dataset_circuits.packs import Pack
from trephine.engine.dataset_circuits.places import NodeKind, Place, lay_places
from trephine.engine.models.hosted import HostedModel

FIRST = 1
"""Nodes lie at positions from here on: position 0 is an attention sink, which sets are not trained on."""


@dataclass(frozen=True, kw_only=True)
class NodeSpace:
    """Addresses of all nodes: by place (a layer's nodes of one kind), then position (if kept), then index."""

    places: tuple[Place, ...]
    n_pos: int | None
    """Tokens of every context if positions are kept, else None."""

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The layer of every place."""
        return tuple(place.layer for place in self.places)

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """Nodes of every place."""
        return tuple(place.width for place in self.places)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """`offsets[k] : offsets[k + 1]` are the nodes of the k-th place."""
        sizes = torch.tensor([0, *(width * self.slots for width in self.widths)])
        return tuple(sizes.cumsum(0).tolist())

    @property
    def slots(self) -> int:
        """Positions that are told apart."""
        return 1 if self.n_pos is None else self.n_pos - FIRST

    @property
    def count(self) -> int:
        """Number of nodes."""
        return self.offsets[-1]

    @property
    def has_sets(self) -> bool:
        """False where neurons and heads are the only nodes: these reconstruct exactly."""
        return any(place.is_of_set for place in self.places)

    def has(self, kind: NodeKind) -> bool:
        """True if there are nodes of a kind."""
        return any(place.kind is kind for place in self.places)

    def part(self, vector: Tensor, place: int) -> Tensor:
        """Return the k-th place's part of `(..., count)` as `(..., slots, width)`."""
        found = vector[..., self.offsets[place] : self.offsets[place + 1]]
        return found.unflatten(-1, (self.slots, self.widths[place]))

    def split(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the place, position (-1 where summed) and index of `nodes (n,)`."""
        starts = torch.tensor(self.offsets)
        place = torch.searchsorted(starts, nodes, right=True) - 1
        width = torch.tensor(self.widths)[place]
        inside = nodes - starts[place]
        position = torch.full_like(nodes, -1) if self.n_pos is None else inside // width + FIRST
        return place, position, inside % width

    def groups(self, nodes: Tensor) -> Tensor:
        """Return a number per place (and position) of `nodes (n,)`: what random circuits are matched on."""
        place, position, _ = self.split(nodes)
        return place * (self.slots + FIRST + 1) + position

    def at_rows(self, pack: Pack, part: Tensor) -> Tensor:
        """Spread a place's `(slots, n)` over the rows of a pack: `(n_rows, n)`."""
        if self.n_pos is None:
            return part.expand(pack.clean.n_rows, part.shape[-1])
        return part[(pack.clean.position - FIRST).clamp_min(0)]

    def kept_at(self, pack: Pack, circuit: Tensor, place: int) -> Tensor:
        """Spread bool `circuit (count,)` over what a place's activations are: `(n_rows, width * unit)`."""
        return self.at_rows(pack, self.part(circuit, place)).repeat_interleave(self.places[place].unit, -1)

    def gather(self, pack: Pack, rows: Tensor, place: int) -> Tensor:
        """Sum a place's `(n_rows, width * unit)` to nodes, `(n_contexts, slots * width)`.

        Position 0 is left out.
        """
        unit = self.places[place].unit
        if unit > 1:
            rows = rows.unflatten(-1, (-1, unit)).sum(-1)
        rows = rows.masked_fill((pack.clean.position < FIRST)[:, None], 0)
        if self.n_pos is None:
            return pack.per_context(rows)
        return rows.unflatten(0, (pack.count, self.n_pos))[:, FIRST:].flatten(1)


def node_space(
    hosted: HostedModel,
    names: Sequence[str],
    layers: Sequence[int] | None,
    positions: PositionRule,
    n_pos: int,
    error_term: ErrorTerm,
) -> NodeSpace:
    """Lay out the nodes of a set and of what stands beside it; errors are those of `lay_places`."""
    return NodeSpace(
        places=lay_places(hosted, names, layers, error_term),
        n_pos=n_pos if positions is PositionRule.KEPT else None,
    )
