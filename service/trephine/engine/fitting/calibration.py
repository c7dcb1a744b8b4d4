"""Thresholds: BatchTopK chooses by batch, what is saved chooses by a fixed threshold, at the same L0.

The running average that SAELens keeps starts from 0 and lags behind for thousands of steps: a short run would
export an L0 ten times too high. Here the threshold is the quantile of pre-activations on held-out contexts
at which k features per position remain, and that this is so is checked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trephine.domain.errors import FitFailedError
from trephine.engine.fitting.activations import FORWARD_TOKENS, read_sites
from trephine.engine.fitting.dictionary import Dictionary, jump_relu
from trephine.engine.fitting.reconstruction import SplicedPass, calibrated
from trephine.engine.models.hosted import HostedModel

TOLERANCE = 0.02
"""Relative; the quantile is exact up to ties."""
_SAMPLE = 1 << 26
"""Pre-activations looked at per layer."""


def calibrate(
    hosted: HostedModel, dictionaries: Sequence[Dictionary], rows: Tensor, k: int, *, spliced: bool = False
) -> None:
    """Set every dictionary's threshold on contexts `(n, context_tokens)`, one layer at a time.

    Args:
        hosted: The model.
        dictionaries: By layer, ascending.
        rows: The contexts.
        k: Active features per position that are aimed at.
        spliced: Let half of the positions come from the run with all layers below spliced, as calibrated:
            fewer features fire there, and a set that is to be used spliced should have its L0 between both.

    Raises:
        FitFailedError: If a layer's L0 is not what was aimed at.
    """
    for index, dictionary in enumerate(dictionaries):
        kept = max(1, _SAMPLE // dictionary.d_sae)
        pre = _pre(hosted, dictionary, rows, kept)
        if spliced:
            half = min(kept // 2, len(pre))
            pre = torch.cat([pre[:half], _spliced_pre(hosted, dictionaries[: index + 1], rows, half)])
        dictionary.threshold = threshold_for(pre, k)
        _check(dictionary, pre, k)


@torch.no_grad()
def _pre(hosted: HostedModel, dictionary: Dictionary, rows: Tensor, kept: int) -> Tensor:
    """Return pre-activations `(kept, d_sae)` at most, of the plain run."""
    site, needed = dictionary.place.site_in, math.ceil(kept / (rows.shape[1] - 1))
    return dictionary.pre(read_sites(hosted, rows[:needed], [site])[site][:kept])


@torch.no_grad()
def _spliced_pre(hosted: HostedModel, dictionaries: Sequence[Dictionary], rows: Tensor, kept: int) -> Tensor:
    """Return the last dictionary's pre-activations `(kept, d_sae)`, with those before it spliced."""
    parts: list[Tensor] = []
    for some in rows.split(max(1, FORWARD_TOKENS // rows.shape[1])):
        run = SplicedPass(dictionaries=dictionaries, support=calibrated)
        run.run(hosted, some.to(hosted.model.device), last_only=True)
        parts.append(run.made.pre[len(dictionaries) - 1].flatten(0, 1))
        if sum(map(len, parts)) >= kept:
            break
    return torch.cat(parts)[:kept]


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
