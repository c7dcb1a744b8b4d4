"""Which edges of a row are stored: all that influences follow, and all that a graph's reader could see."""

from __future__ import annotations

import torch
from torch import Tensor

from trephine.engine.attribution.influence import FLOOR
from trephine.engine.attribution.row_blocks import Entries, RowBlock
from trephine.engine.graphs.edge_room import EdgeRoom
from trephine.engine.graphs.sweeping import FeatureSums
from trephine.engine.graphs.targets import FeatureTargets

_SIZES_AT_ONCE, _SIZES_AT_ONCE_ON_GPU = 1 << 22, 1 << 26
"""Contributions whose sizes are compared at once; 16 MiB in float32, on a GPU 256."""
NEGLIGIBLE = 4e-5
"""Edges below this share of a row's largest shown one are not stored; they are in its remainder."""


def stored_rows(
    targets: FeatureTargets, cells: list[int], sums: FeatureSums, mass: Tensor, room: EdgeRoom
) -> RowBlock:
    """Keep, per target, the features that are not negligible beside the row's largest edge, where they fit.

    Args:
        targets: What was explained.
        cells: The row's cell of each target.
        sums: Their contributions.
        mass: `(n_targets,)`, absolute sum over all sources.
        room: For edges to features.

    Returns:
        The rows, in the targets' order, on their device.
    """
    sizes = _SIZES_AT_ONCE if mass.device.type == "cpu" else _SIZES_AT_ONCE_ON_GPU
    at_once = max(1, sizes // max(1, sums.features.shape[1]))
    columns = (sums.features, sums.errors, sums.tokens, mass)
    kept = [
        kept_edges(features, errors, tokens, whole, room)
        for features, errors, tokens, whole in zip(*(each.split(at_once) for each in columns), strict=True)
    ]
    return RowBlock(
        cells=tuple(cells),
        layers=tuple(targets.place.tolist()),
        shares=(1.0,) * len(cells),
        ranked=_joined([ranked for ranked, _ in kept]),
        rest=_joined([rest for _, rest in kept]),
        tokens=sums.tokens.float(),
        errors=sums.errors.flatten(1).float(),
        bias=sums.bias,
        total=targets.total,
        mass=mass,
    )


def _joined(parts: list[Entries]) -> Entries:
    if len(parts) == 1:
        return parts[0]
    return Entries(
        counts=tuple(count for part in parts for count in part.counts),
        sources=torch.cat([part.sources for part in parts]),
        weights=torch.cat([part.weights for part in parts]),
    )


def kept_edges(
    features: Tensor, errors: Tensor, tokens: Tensor, mass: Tensor, room: EdgeRoom
) -> tuple[Entries, Entries]:
    """Return what is kept of each row: what influences follow, and what else could be seen.

    Args:
        features: `(n, n_cells)`, contributions.
        errors: `(n, n_error_sites, n_pos)`.
        tokens: `(n, n_pos)`.
        mass: `(n,)`.
        room: For edges of both kinds together; the largest are kept.
    """
    sizes = features.abs()  # (n, n_cells)
    floor = FLOOR * mass  # (n,)
    shown = NEGLIGIBLE * largest_shown(sizes, errors, tokens)
    listed = _by_row(sizes > torch.minimum(floor, shown)[:, None], features)
    large = listed.weights.abs() > floor.repeat_interleave(
        torch.tensor(listed.counts, device=mass.device), output_size=len(listed.weights)
    )
    ranked, rest = _part(listed, large), _part(listed, ~large)
    granted = room.grant(listed.counts)
    ranked = _limited(ranked, granted)
    left = [most - count for most, count in zip(granted, ranked.counts, strict=True)]
    return ranked, _limited(rest, left)


def _by_row(chosen: Tensor, features: Tensor) -> Entries:
    """List, row by row, where it is True, and the features there."""
    n, width = features.shape
    # Flat places: pairs of a row and a cell take twice the memory, and columns of pairs are slow to read.
    place = chosen.flatten().nonzero().flatten()
    starts = torch.arange(n + 1, device=place.device) * width
    counts = torch.searchsorted(place, starts).diff().tolist()
    weights = features.flatten()[place].float()
    sources = place.remainder_(max(1, width)).to(torch.int32)
    return Entries(counts=tuple(counts), sources=sources, weights=weights)


def _part(entries: Entries, chosen: Tensor) -> Entries:
    """Keep entries, by a mask over all of them."""
    own = chosen.nonzero().flatten()
    ends = torch.tensor([0, *entries.counts], device=own.device).cumsum(0)
    return Entries(
        counts=tuple(torch.searchsorted(own, ends).diff().tolist()),
        sources=entries.sources[own],
        weights=entries.weights[own],
    )


def _limited(entries: Entries, room: list[int]) -> Entries:
    """Keep no more than the largest of a row that has more than its room."""
    if all(count <= most for count, most in zip(entries.counts, room, strict=True)):
        return entries
    parts = [
        (sources, weights) if len(weights) <= most else _largest(sources, weights, most)
        for sources, weights, most in zip(
            entries.sources.split(entries.counts), entries.weights.split(entries.counts), room, strict=True
        )
    ]
    return Entries(
        counts=tuple(len(sources) for sources, _ in parts),
        sources=torch.cat([sources for sources, _ in parts]),
        weights=torch.cat([weights for _, weights in parts]),
    )


def _largest(sources: Tensor, weights: Tensor, room: int) -> tuple[Tensor, Tensor]:
    kept = weights.abs().topk(room).indices
    return sources[kept], weights[kept]


def largest_shown(sizes: Tensor, errors: Tensor, tokens: Tensor) -> Tensor:
    """Bound each row's largest edge from a node from below, `(n,)`: which features will be nodes is unknown.

    Error terms and tokens always are. A large feature that is never selected hides no edge of the others.
    """
    none = sizes.new_zeros(len(sizes))
    shown = errors[:, :, 1:].abs().flatten(1)
    certain = torch.maximum(tokens.abs().amax(1), shown.amax(1) if shown.shape[1] else none)
    largest = sizes.amax(1) if sizes.shape[1] else none
    return torch.where(certain > 0, torch.minimum(largest, certain), largest)
