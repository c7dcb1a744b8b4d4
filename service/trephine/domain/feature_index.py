"""How a feature index lies in its SQLite file. The engine writes it, the service reads it.

Counts are kept as arrays, one per layer and quantity, `(d_sae, ...)`, little-endian and deflated: a layer's
figures are read in one piece of about a megabyte, and a transaction writes them all beside the progress.
"""

from __future__ import annotations

from dataclasses import dataclass

LAYOUT = 1
"""Raised when a file of before could not be read."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS contexts (
  number INTEGER PRIMARY KEY, document INTEGER NOT NULL, tokens BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS tokens (id INTEGER PRIMARY KEY, raw BLOB NOT NULL, display TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS arrays (
  layer INTEGER NOT NULL, name TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (layer, name)
);
"""
"""`facts`: `request`, `progress` and, once it is whole, `info`, as JSON. `contexts.tokens`: int32 ids."""

EDGES = tuple(2.0 ** (step / 2) for step in range(-16, 17))
"""Of every histogram: fixed, so that it can be counted as the corpus streams by."""
BINS = len(EDGES) + 1

SAMPLED_FIRINGS = 32
"""Positions per feature at which its partners are counted: the first ones at which it fires."""
PARTNERS = 16
TOP_TOKENS = 8
DENSE_FIRING = 32
"""Of a dense layer as many neurons count as firing at a position: those that contribute most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayForm:
    """One array of a layer."""

    dtype: str
    shape: tuple[int, ...]
    """Behind `d_sae`."""
    empty: float = 0


def array_forms(*, kept: int, window: int) -> dict[str, ArrayForm]:
    """Describe the arrays of a layer.

    Args:
        kept: Contexts per feature.
        window: Tokens on either side of a peak.
    """
    return {
        "counts": ArrayForm(dtype="<i8", shape=()),
        "sums": ArrayForm(dtype="<f8", shape=()),
        "masses": ArrayForm(dtype="<f8", shape=()),
        "largest": ArrayForm(dtype="<f4", shape=()),
        "histogram": ArrayForm(dtype="<u4", shape=(BINS,)),
        "top_values": ArrayForm(dtype="<f4", shape=(kept,)),
        "top_contexts": ArrayForm(dtype="<i4", shape=(kept,), empty=-1),
        "top_places": ArrayForm(dtype="<i2", shape=(kept,)),
        "top_windows": ArrayForm(dtype="<i1", shape=(kept, 2 * window + 1)),
        "token_ids": ArrayForm(dtype="<i4", shape=(TOP_TOKENS,), empty=-1),
        "token_masses": ArrayForm(dtype="<f4", shape=(TOP_TOKENS,)),
        "partner_ids": ArrayForm(dtype="<i4", shape=(PARTNERS,), empty=-1),
        "partner_counts": ArrayForm(dtype="<u1", shape=(PARTNERS,)),
    }


def bytes_per_feature(*, kept: int, window: int) -> int:
    """Return what one feature takes in memory while an index is built, and at most on disk."""
    total = 0
    for form in array_forms(kept=kept, window=window).values():
        cells = 1
        for size in form.shape:
            cells *= size
        total += int(form.dtype[-1]) * cells
    return total
