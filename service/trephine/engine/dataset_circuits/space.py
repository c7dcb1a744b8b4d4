"""Which nodes there are, and flat vectors over them: one number per feature, or per feature and position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from trephine.domain.dataset_circuits import PositionRule
from trephine.domain.errors import UnsupportedOptionError
from trephine.domain.interventions import ErrorTerm
from trephine.domain.replacements import ReplacementLayerInfo
from trephine.domain.sites import NEURONS, SiteKind
from trephine.engine.dataset_circuits.packs import Pack
from trephine.engine.hosted import HostedModel
from trephine.engine.replacements.sets import covered_layers, layer_info
from trephine.engine.sites import require_layer

FIRST = 1
"""Nodes lie at positions from here on: position 0 is an attention sink, which sets are not trained on."""
_KNOWN = {
    SiteKind.MLP_IN, SiteKind.MLP_OUT, SiteKind.ATTN_OUT, SiteKind.RESID_PRE, SiteKind.RESID_MID,
    SiteKind.RESID_POST, SiteKind.EMBED,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NodeSpace:
    """Addresses of all nodes: by layer, then position (if kept), then index."""

    replacement: str
    layers: tuple[int, ...]
    widths: tuple[int, ...]
    infos: tuple[ReplacementLayerInfo, ...]
    n_pos: int | None
    """Tokens of every context if positions are kept, else None."""

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """`offsets[k] : offsets[k + 1]` are the nodes of the k-th layer."""
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
    def is_neurons(self) -> bool:
        """True for the model's own neurons, which reconstruct exactly."""
        return self.replacement == NEURONS

    def part(self, vector: Tensor, place: int) -> Tensor:
        """Return the k-th layer's part of `(..., count)` as `(..., slots, width)`."""
        found = vector[..., self.offsets[place] : self.offsets[place + 1]]
        return found.unflatten(-1, (self.slots, self.widths[place]))

    def split(self, nodes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the place of the layer, position (-1 where summed) and index of `nodes (n,)`."""
        starts = torch.tensor(self.offsets)
        place = torch.searchsorted(starts, nodes, right=True) - 1
        width = torch.tensor(self.widths)[place]
        inside = nodes - starts[place]
        position = torch.full_like(nodes, -1) if self.n_pos is None else inside // width + FIRST
        return place, position, inside % width

    def groups(self, nodes: Tensor) -> Tensor:
        """Return a number per layer (and position) of `nodes (n,)`: what random circuits are matched on."""
        place, position, _ = self.split(nodes)
        return place * (self.slots + FIRST + 1) + position

    def at_rows(self, pack: Pack, part: Tensor) -> Tensor:
        """Spread a layer's `(slots, width)` over the rows of a pack: `(n_rows, width)`."""
        if self.n_pos is None:
            return part.expand(pack.clean.n_rows, part.shape[-1])
        return part[(pack.clean.position - FIRST).clamp_min(0)]

    def gather(self, pack: Pack, rows: Tensor, place: int) -> Tensor:
        """Make `(n_rows, width)` of one layer into `(n_contexts, slots * width)`; position 0 is left out."""
        rows = rows.masked_fill((pack.clean.position < FIRST)[:, None], 0)
        if self.n_pos is None:
            return pack.per_context(rows)
        return rows.unflatten(0, (pack.count, self.n_pos))[:, FIRST:].flatten(1)


def node_space(
    hosted: HostedModel,
    name: str,
    layers: Sequence[int] | None,
    positions: PositionRule,
    n_pos: int,
    error_term: ErrorTerm,
) -> NodeSpace:
    """Lay out the nodes of a set.

    Raises:
        ReplacementNotFoundError: If there is no such set.
        LayerOutOfRangeError: If it does not cover a layer.
        UnsupportedOptionError: If a site or an error term is not supported.
    """
    chosen = covered_layers(hosted, name) if layers is None else tuple(sorted(set(layers)))
    for layer in chosen:
        require_layer(hosted.architecture, layer)
    infos = tuple(layer_info(hosted, name, layer) for layer in chosen)
    if name != NEURONS:
        for info in infos:
            _check(info, error_term)
    return NodeSpace(
        replacement=name,
        layers=chosen,
        widths=tuple(info.d_sae for info in infos),
        infos=infos,
        n_pos=n_pos if positions is PositionRule.KEPT else None,
    )


def _check(info: ReplacementLayerInfo, error_term: ErrorTerm) -> None:
    for site in (info.site_in, *info.sites_out):
        if site.kind not in _KNOWN:
            raise UnsupportedOptionError(
                f"layer {info.layer} of the set is at {site.kind.value}; dataset circuits know "
                f"{', '.join(sorted(kind.value for kind in _KNOWN))}",
                field="replacement",
            )
    if error_term is not ErrorTerm.LIVE and len(info.sites_out) > 1:
        raise UnsupportedOptionError(
            f"error_term {error_term.value} needs layers that write one site; those of a cross-layer "
            "transcoder write several. Use `live`",
            field="error_term",
        )
