"""What is counted of one layer while a corpus streams by: arrays over its features, nothing per token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trephine.domain.feature_index import BINS, EDGES, SAMPLED_FIRINGS, array_forms
from trephine.engine.features.merging import Floats, Ints, merge_heaviest, pairs_at, ranks, summed

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Firings:
    """Firings of one layer in one context, sorted by position."""

    positions: Ints
    """`(n,)`, all at least 1."""
    features: Ints
    """`(n,)`."""
    values: Floats
    """`(n,)`, activations."""


class LayerTally:
    """Counts of one layer. Equal corpora in equal order give equal arrays, whatever the interruptions."""

    def __init__(self, d_sae: int, *, kept: int, window: int, arrays: Mapping[str, bytes] | None) -> None:
        self.d_sae, self._kept, self._window = d_sae, kept, window
        self._forms = array_forms(kept=kept, window=window)
        self.arrays: Arrays = {
            name: np.full((d_sae, *form.shape), form.empty, form.dtype)
            if arrays is None
            else np.frombuffer(arrays[name], form.dtype).reshape(d_sae, *form.shape).copy()
            for name, form in self._forms.items()
        }
        self._pending: list[tuple[Ints, Ints, Floats]] = []

    def add(self, context: int, ids: Ints, firings: Firings) -> None:
        """Count one context.

        Args:
            context: Its number.
            ids: `(n_pos,)`, its tokens.
            firings: What fires in it.
        """
        self._add_partners(firings)
        features, values = firings.features, firings.values
        sizes = np.abs(values)
        self._count(features, values, sizes)
        self._pending.append(summed(features, ids[firings.positions], sizes))
        self._keep_peaks(context, firings, sizes)

    def settle(self) -> None:
        """Merge what is held back between quanta. Must happen at places that the corpus alone fixes."""
        if self._pending:
            rows, keys, weights = (np.concatenate(part) for part in zip(*self._pending, strict=True))
            self._pending = []
            present = weights > 0
            merge_heaviest(
                self.arrays["token_ids"],
                self.arrays["token_masses"],
                rows[present],
                keys[present],
                weights[present],
            )

    def _count(self, features: Ints, values: Floats, sizes: Floats) -> None:
        d_sae, arrays = self.d_sae, self.arrays
        arrays["counts"] += np.bincount(features, minlength=d_sae)
        arrays["sums"] += np.bincount(features, weights=values, minlength=d_sae)
        arrays["masses"] += np.bincount(features, weights=sizes, minlength=d_sae)
        bins = np.searchsorted(np.asarray(EDGES), sizes, side="right")
        cells = np.bincount(features * BINS + bins, minlength=d_sae * BINS)
        arrays["histogram"] += cells.reshape(d_sae, BINS).astype("<u4")

    def _add_partners(self, firings: Firings) -> None:
        """Count partners at each feature's first firings, as long as there are such."""
        order = np.argsort(firings.features, kind="stable")
        before = np.empty(len(order), np.int64)
        before[order] = ranks(firings.features[order])
        chosen = before + self.arrays["counts"][firings.features] < SAMPLED_FIRINGS
        if chosen.any():
            feature, partner = pairs_at(firings.positions, firings.features, chosen)
            if len(feature):
                merge_heaviest(
                    self.arrays["partner_ids"],
                    self.arrays["partner_counts"],
                    feature,
                    partner,
                    np.ones(len(feature)),
                )

    def _keep_peaks(self, context: int, firings: Firings, sizes: Floats) -> None:
        """Enter each feature's strongest firing in this context where it beats the weakest one kept."""
        order = np.lexsort((firings.positions, -sizes, firings.features))
        peaks = order[ranks(firings.features[order]) == 0]
        features, places = firings.features[peaks], firings.positions[peaks]
        values = firings.values[peaks].astype("<f4")
        arrays, size = self.arrays, np.abs(values)
        larger = size > np.abs(arrays["largest"][features])
        arrays["largest"][features[larger]] = values[larger]
        better = size > np.abs(arrays["top_values"][features, -1])
        features, places, values = features[better], places[better], values[better]
        if len(features):
            windows = self._windows(firings, features, places, values)
            self._insert(features, values, np.full(len(features), context), places, windows)

    def _windows(
        self, firings: Firings, features: Ints, places: Ints, values: NDArray[Any]
    ) -> NDArray[np.int8]:
        """Cut out the activations about each peak, in 127ths of it; `(n, 2 * window + 1)`."""
        number = np.full(self.d_sae, -1, np.int64)
        number[features] = np.arange(len(features))
        row = number[firings.features]
        column = firings.positions - places[row] + self._window
        inside = (row >= 0) & (column >= 0) & (column <= 2 * self._window)
        windows = np.zeros((len(features), 2 * self._window + 1), np.int8)
        row, column = row[inside], column[inside]
        scaled = firings.values[inside] / np.abs(values[row].astype(np.float64)) * 127
        windows[row, column] = np.clip(np.rint(scaled), -127, 127).astype(np.int8)
        return windows

    def _insert(
        self,
        features: Ints,
        values: NDArray[Any],
        contexts: Ints,
        places: Ints,
        windows: NDArray[np.int8],
    ) -> None:
        """Insert one entry per feature, sorted by magnitude; of equals the earlier context stays in front."""
        arrays = self.arrays
        joined = np.concatenate([arrays["top_values"][features], values[:, None]], axis=1)
        order = np.argsort(-np.abs(joined), axis=1, kind="stable")[:, : self._kept]
        new = {"top_values": values, "top_contexts": contexts, "top_places": places, "top_windows": windows}
        for name, added in new.items():
            form = self._forms[name]
            both = np.concatenate([arrays[name][features], added[:, None].astype(form.dtype)], axis=1)
            arrays[name][features] = np.take_along_axis(
                both, order.reshape(order.shape + (1,) * (both.ndim - 2)), 1
            )
