"""How well a layer reconstructs: FVU, L0, dead features, with position 0 apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.sites import Site
from trephine.engine.admission.splice import written_by
from trephine.engine.replacements.layer import ReplacementLayer

_ROWS = 128
"""Positions encoded at once: pre-activations, activations and support are `(rows, d_sae)` each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFidelity:
    """One layer on one text."""

    l0: float
    l0_first: float
    fvu: float
    fvu_first: float
    dead_share: float


class Fidelity:
    """Counts one layer's features over positions, then compares what was written with the truth.

    Args:
        d_sae: Features of the layer.
        first: bool `(tokens,)`, True at position 0 of every context.
        counted: bool `(tokens,)`, the positions that the figures are of.
    """

    def __init__(self, d_sae: int, first: Tensor, counted: Tensor) -> None:
        self._first, self._counted = first, counted
        self._counts = torch.zeros(first.numel())
        self._fired = torch.zeros(d_sae, dtype=torch.bool)

    def add_layer(self, layer: ReplacementLayer, x: Tensor, sums: dict[Site, Tensor]) -> None:
        """Encode `x (tokens, d_in)` and add what the layer writes to `sums`."""
        for start in range(0, x.shape[0], _ROWS):
            rows = slice(start, start + _ROWS)
            code, written = written_by(layer, x[rows])
            self._counts[rows] = code.active.sum(-1).float().cpu()
            self._fired |= code.active[self._counted[rows]].any(0).cpu()
            for site, value in written.items():
                if site not in sums:
                    sums[site] = value.new_zeros(x.shape[0], value.shape[1])
                sums[site][rows] += value

    def score(self, reconstructed: Tensor, truth: Tensor) -> LayerFidelity:
        """Compare `(tokens, d_out)` with the truth."""
        first, counted = self._first, self._counted
        return LayerFidelity(
            l0=float(self._counts[counted.cpu()].mean()),
            l0_first=float(self._counts[first.cpu()].mean()),
            fvu=unexplained(reconstructed[counted], truth[counted]),
            fvu_first=_relative_error(reconstructed[first], truth[first]),
            dead_share=float((~self._fired).float().mean()),
        )


def unexplained(reconstructed: Tensor, truth: Tensor) -> float:
    """Return the sum of squared errors over the sum of per-dimension variances, of `(n, d_out)`."""
    mean = truth.mean(0, dtype=torch.float64)
    return _squares(truth, reconstructed) / _squares(truth, mean.expand_as(truth))


def _relative_error(reconstructed: Tensor, truth: Tensor) -> float:
    return _squares(truth, reconstructed) / _squares(truth, truth.new_zeros(()).expand_as(truth))


def _squares(first: Tensor, second: Tensor) -> float:
    """Return the sum of squared differences, in float64 a slice at a time."""
    parts = zip(first.split(_ROWS), second.split(_ROWS), strict=True)
    return sum(float((a.double() - b.double()).square().sum()) for a, b in parts)
