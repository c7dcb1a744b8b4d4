"""What the active features of a prompt write, ready to be scored against adjoints.

At a position only its own active features are met, so that their decoders have to be gathered per position.
They come in blocks of consecutive positions, padded to the block's largest number of features: one batched
product scores a block. Blocks are kept where the whole prompt's fit into a little memory: then they are
gathered once instead of in every sweep.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from trephine.domain.sites import LayerRef, Site
from trephine.engine.graphs.actives import ActiveFeatures, ActiveLayer
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.sets import opened

KEPT_BYTES, KEPT_BYTES_ON_GPU = 64 << 20, 2 << 30
"""A prompt whose gathered decoders exceed this gathers them anew in each sweep.

On a GPU gathering costs calls, not bandwidth, and memory is less scarce than calls.
"""
PADDING = 2
"""A block has at most so many times the rows of its features."""
_BLOCK_ROWS, _BLOCK_ROWS_ON_GPU = 1 << 13, 1 << 17
"""Rows of a block, padding included; bounds the memory of a gathering."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Consecutive positions whose features are scored together."""

    positions: range
    width: int
    """The largest number of features at a position."""

    @property
    def rows(self) -> int:
        """Rows of the block, padding included."""
        return len(self.positions) * self.width


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The features of one layer at a span of positions, and their decoders at one site."""

    positions: range
    offsets: tuple[int, ...]
    """Features of a position start there, one more than positions; counted from the layer's first."""
    decoders: Tensor
    """`(n_positions, width, d_model)`; what stands beyond a position's features is not read."""
    place: Tensor
    """int64 `(n,)`: where in the flat `n_positions * width` each feature stands, ascending."""
    written: Tensor
    """`(n,)`, what a feature's decoder is multiplied with."""

    def score(self, by_position: Tensor) -> tuple[slice, Tensor]:
        """Multiply adjoints with what is written.

        Args:
            by_position: `(n_cone, n_targets, d_model)`; features beyond its positions are left out.

        Returns:
            Which of the layer's features, and their contributions `(n_targets, n_features)`.
        """
        adjoint = by_position[self.positions.start : self.positions.stop]
        n_features = self.offsets[len(adjoint)] - self.offsets[0]
        found = torch.bmm(adjoint, self.decoders[: len(adjoint)].transpose(1, 2))
        flat = found.transpose(0, 1).flatten(1)  # (n_targets, n_positions * width)
        contributions = flat[:, self.place[:n_features]] * self.written[:n_features]
        return slice(self.offsets[0], self.offsets[0] + n_features), contributions


@dataclass(frozen=True, slots=True)
class Writes:
    """Blocks of one prompt's features; those of a short prompt are kept."""

    _kept: dict[tuple[LayerRef, Site, torch.dtype], tuple[Block, ...]] = field(default_factory=dict)
    _spans: dict[LayerRef, tuple[Span, ...]] = field(default_factory=dict)

    def of(
        self, hosted: HostedModel, active: ActiveFeatures, layer: ActiveLayer, site: Site, dtype: torch.dtype
    ) -> Iterator[Block]:
        """Yield what a layer writes at a site, by position.

        Args:
            hosted: The model with its sets.
            active: The prompt's active features, the same at every call.
            layer: One of its layers.
            site: A site that it writes.
            dtype: Of the adjoints.
        """
        key, ref = (layer.ref, site, dtype), layer.ref
        if key in self._kept:
            yield from self._kept[key]
            return
        if ref not in self._spans:
            self._spans[ref] = _spans(layer)
        found = blocks(hosted, layer, site, dtype, self._spans[ref])
        width = active.errors[site].shape[1] * dtype.itemsize
        room = KEPT_BYTES if _on_cpu(layer) else KEPT_BYTES_ON_GPU
        if PADDING * width * _written_vectors(active.layers) > room:
            yield from found
        else:
            yield from self._kept.setdefault(key, tuple(found))


def _on_cpu(layer: ActiveLayer) -> bool:
    return layer.index.device.type == "cpu"


def _spans(layer: ActiveLayer) -> tuple[Span, ...]:
    return tuple(spans_of(layer.offsets, _BLOCK_ROWS if _on_cpu(layer) else _BLOCK_ROWS_ON_GPU))


def _written_vectors(layers: Sequence[ActiveLayer]) -> int:
    return sum(layer.count * len(layer.info.sites_out) for layer in layers)


def spans_of(offsets: Sequence[int], most: int) -> Iterator[Span]:
    """Cut positions where padding or size would grow too large; leading ones without features go."""
    first, width, features = 0, 0, 0
    for position, (start, end) in enumerate(pairwise(offsets)):
        wider = max(width, end - start)
        rows = (position + 1 - first) * wider
        if width and (rows > PADDING * (features + end - start) or rows > most):
            yield Span(positions=range(first, position), width=width)
            first, width, features = position, end - start, end - start
        else:
            width, features = wider, features + end - start
        if not width:
            first = position + 1
    if width:
        yield Span(positions=range(first, len(offsets) - 1), width=width)


def blocks(
    hosted: HostedModel,
    layer: ActiveLayer,
    site: Site,
    dtype: torch.dtype,
    spans: Sequence[Span] | None = None,
) -> Iterator[Block]:
    """Gather the decoders that a layer's active features have at a site, a block at a time.

    Args:
        hosted: The model with its sets.
        layer: A layer of a set.
        site: A site that it writes.
        dtype: Of the decoders.
        spans: Of the layer, by `spans_of`, where they are known.
    """
    unique, decoder = layer.index.unique(return_inverse=True)
    with opened(hosted, layer.ref.replacement, [layer.ref.layer]) as resident:
        decoders = resident[layer.ref.layer].decoders(unique.tolist(), site).to(dtype)
    for span in _spans(layer) if spans is None else spans:
        positions = span.positions
        offsets = layer.offsets[positions.start : positions.stop + 1]
        own = slice(offsets[0], offsets[-1])
        within = torch.arange(*own.indices(layer.count), device=decoder.device)
        starts = torch.tensor(offsets, device=decoder.device)
        position = layer.position[own] - positions.start
        place = position * span.width + (within - starts[position])
        chosen = decoder.new_zeros(span.rows).index_copy_(0, place, decoder[own])
        yield Block(
            positions=positions,
            offsets=offsets,
            decoders=decoders[chosen].unflatten(0, (-1, span.width)),
            place=place,
            written=layer.written[own].to(dtype),
        )
