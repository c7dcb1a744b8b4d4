"""Bounded lists of the heaviest companions of every feature: its tokens, its partners.

Rows are merged as in Space-Saving (Metwally et al. 2005) without its error bound: what falls out of a row
is forgotten, so that weights are exact or too small, never too large. Ties go to the smaller key, so that
the outcome depends on nothing but the order in which the corpus was read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def summed(rows: Ints, keys: Ints, weights: Floats) -> tuple[Ints, Ints, Floats]:
    """Add up the weights of equal (row, key) pairs; sorted by row, then key."""
    span = int(keys.max(initial=0)) + 1
    codes, inverse = np.unique(rows * span + keys, return_inverse=True)
    totals = np.bincount(inverse, weights=weights, minlength=len(codes)).astype(np.float64)
    return (codes // span).astype(np.int64), (codes % span).astype(np.int64), totals


def merge_heaviest(
    ids: NDArray[Any],
    held: NDArray[Any],
    rows: Ints,
    keys: Ints,
    weights: Floats,
) -> None:
    """Merge weighted keys into the rows that they belong to, in place, keeping each row's heaviest.

    Args:
        ids: `(n_rows, kept)`, -1 where empty.
        held: `(n_rows, kept)`, their weights.
        rows: `(n,)`.
        keys: `(n,)`, at least 0.
        weights: `(n,)`, above 0.
    """
    touched = np.unique(rows)
    before = ids[touched].astype(np.int64)
    there = before >= 0
    rows = np.concatenate([np.repeat(touched, there.sum(1)), rows])
    keys = np.concatenate([before[there], keys])
    weights = np.concatenate([held[touched][there].astype(np.float64), weights])
    rows, keys, weights = summed(rows, keys, weights)
    order = np.lexsort((keys, -weights, rows))
    rows, keys, weights = rows[order], keys[order], weights[order]
    rank = ranks(rows)
    kept = rank < ids.shape[1]
    ids[touched], held[touched] = -1, 0
    ids[rows[kept], rank[kept]] = keys[kept]
    held[rows[kept], rank[kept]] = weights[kept]


def ranks(rows: Ints) -> Ints:
    """Count, for each entry of sorted rows, the entries of the same row before it."""
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    lengths = np.diff(np.append(starts, len(rows)))
    return np.arange(len(rows)) - np.repeat(starts, lengths)


def pairs_at(positions: Ints, features: Ints, chosen: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """Pair chosen firings with every other feature that fires at the same position.

    Args:
        positions: `(n,)`, sorted; one entry per firing.
        features: `(n,)`.
        chosen: `(n,)`, firings whose partners are wanted.

    Returns:
        The feature of every pair, and its partner.
    """
    starts = np.searchsorted(positions, positions[chosen], "left")
    ends = np.searchsorted(positions, positions[chosen], "right")
    sizes = ends - starts
    feature = np.repeat(features[chosen], sizes)
    offsets = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    partner = features[np.repeat(starts, sizes) + offsets]
    other = feature != partner
    return feature[other], partner[other]
