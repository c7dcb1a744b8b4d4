"""Which edges of a row are stored: all that influences follow, and all that a graph's reader could see."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trephine.engine.graphs.sweeping import FeatureSums
from trephine.engine.graphs.targets import FeatureTargets
from trephine.engine.influence import FLOOR, Row

_SIZES_AT_ONCE = 1 << 22
"""Contributions whose sizes are compared at once; 16 MiB in float32."""
NEGLIGIBLE = 4e-5
"""Edges below this share of a row's largest shown one are not stored; they are in its remainder."""


def stored_rows(
    targets: FeatureTargets, cells: list[int], sums: FeatureSums, mass: Tensor, room: int
) -> Iterator[Row]:
    """Keep, per target, up to `room` features that are not negligible beside the row's largest edge.

    Args:
        targets: What was explained.
        cells: The row's cell of each target.
        sums: Their contributions.
        mass: `(n_targets,)`, absolute sum over all sources.
        room: Edges to features that a row may store.
    """
    at_once = max(1, _SIZES_AT_ONCE // max(1, sums.features.shape[1]))
    columns = (sums.features, sums.errors, sums.tokens, mass)
    kept = (
        row
        for features, into_errors, into_tokens, whole in zip(
            *(column.split(at_once) for column in columns), strict=True
        )
        for row in kept_edges(features, into_errors, into_tokens, whole, room)
    )
    tokens, errors = sums.tokens.float().cpu(), sums.errors.flatten(1).float().cpu()
    figures = (column.tolist() for column in (targets.place, sums.bias, targets.total, mass))
    numbers = zip(cells, kept, zip(*figures, strict=True), strict=True)
    for number, (cell, (sources, weights, ranked), (place, bias, total, of_row)) in enumerate(numbers):
        yield Row(
            cell=cell,
            layer=place,
            sources=sources,
            weights=weights,
            ranked=ranked,
            tokens=tokens[number],
            errors=errors[number],
            bias=bias,
            total=total,
            mass=of_row,
        )


def kept_edges(
    features: Tensor, errors: Tensor, tokens: Tensor, mass: Tensor, room: int
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield what is kept of each row.

    Args:
        features: `(n, n_cells)`, contributions.
        errors: `(n, n_error_sites, n_pos)`.
        tokens: `(n, n_pos)`.
        mass: `(n,)`.
        room: Edges at most.

    Yields:
        Cells `(n_kept,)`, those that influences follow first, their contributions, and how many these are.
    """
    sizes = features.abs()  # (n, n_cells)
    large = sizes > FLOOR * mass[:, None]
    small = (sizes > NEGLIGIBLE * largest_shown(sizes, errors, tokens)[:, None]) & ~large
    for (first, heavy), (rest, light) in zip(_by_row(large, features), _by_row(small, features), strict=True):
        ranked, others = _largest(heavy, room), _largest(light, room - min(room, len(first)))
        sources = torch.cat([first[ranked], rest[others]])
        yield sources, torch.cat([heavy[ranked], light[others]]), min(room, len(first))


def _by_row(chosen: Tensor, features: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, per row, where it is True and the features there, on the CPU."""
    row, cell = chosen.nonzero(as_tuple=True)
    counts = torch.bincount(row, minlength=len(chosen)).tolist()
    weights = features[row, cell].float().cpu()
    yield from zip(cell.to(torch.int32).cpu().split(counts), weights.split(counts), strict=True)


def _largest(weights: Tensor, room: int) -> Tensor | slice:
    return slice(None) if len(weights) <= room else weights.abs().topk(room).indices


def largest_shown(sizes: Tensor, errors: Tensor, tokens: Tensor) -> Tensor:
    """Bound each row's largest edge from a node from below, `(n,)`: which features will be nodes is unknown.

    Error terms and tokens always are. A large feature that is never selected hides no edge of the others.
    """
    none = sizes.new_zeros(len(sizes))
    shown = errors[:, :, 1:].abs().flatten(1)
    certain = torch.maximum(tokens.abs().amax(1), shown.amax(1) if shown.shape[1] else none)
    largest = sizes.amax(1) if sizes.shape[1] else none
    return torch.where(certain > 0, torch.minimum(largest, certain), largest)
