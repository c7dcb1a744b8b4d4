"""Thresholds: BatchTopK chooses by batch, what is saved chooses by a fixed threshold, at the same L0.

The running average that SAELens keeps starts from 0 and lags behind for thousands of steps: a short run would
export an L0 ten times too high. Here the threshold is the quantile of pre-activations on held-out contexts
at which k features per position remain, and that this is so is checked.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trephine.domain.errors import FitFailedError
from trephine.engine.fitting.activations import read_sites
from trephine.engine.fitting.dictionary import Dictionary, jump_relu
from trephine.engine.hosted import HostedModel

TOLERANCE = 0.02
"""Relative; the quantile is exact up to ties."""
_SAMPLE = 1 << 26
"""Pre-activations looked at per layer."""


def calibrate(hosted: HostedModel, dictionaries: Sequence[Dictionary], rows: Tensor, k: int) -> None:
    """Set every dictionary's threshold on contexts `(n, context_tokens)`, one layer at a time.

    Raises:
        FitFailedError: If a layer's L0 is not what was aimed at.
    """
    for dictionary in dictionaries:
        site = dictionary.place.site_in
        x = read_sites(hosted, rows, [site])[site]
        kept = max(1, _SAMPLE // dictionary.d_sae)
        with torch.no_grad():
            pre = dictionary.pre(x[:kept])
        dictionary.threshold = threshold_for(pre, k)
        _check(dictionary, pre, k)


def threshold_for(pre: Tensor, k: int) -> float:
    """Return the threshold above which `k` features per row remain of `pre (rows, d_sae)`, at least 0."""
    flat = pre.reshape(-1)
    kept = k * len(pre)
    if kept >= flat.numel():
        return 0.0
    smallest_kept = float(flat.kthvalue(flat.numel() - kept + 1).values)
    largest_left = float(flat.kthvalue(flat.numel() - kept).values)
    return max(0.0, (smallest_kept + largest_left) / 2)


def _check(dictionary: Dictionary, pre: Tensor, k: int) -> None:
    l0 = float((jump_relu(pre, dictionary.threshold) > 0).sum(-1).float().mean())
    short = dictionary.threshold == 0.0 and l0 <= k  # no threshold can make more features positive
    if not short and not abs(l0 - k) <= TOLERANCE * k:
        raise FitFailedError(
            f"layer {dictionary.place.layer} has an L0 of {l0:.2f} after calibration, and {k} was aimed at; "
            "training has diverged, try a lower learning rate",
            layer=dictionary.place.layer,
            l0=l0,
        )
