"""Activations that fits are made on: of the intervened model, with earlier fitted deltas already in place."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trephine.domain.interventions import Intervention
from trephine.domain.sites import Site
from trephine.engine.models.hosted import HostedModel
from trephine.engine.runs.retain import window_batches
from trephine.engine.runs.rows import RowInput, run_rows

Windows = Sequence[Sequence[int]]
Deltas = Mapping[nn.Module, tuple[Tensor, Tensor]]
"""Linear module -> float64 `(d_out, k)` and `(k, d_in)`, whose product is added to its weights."""


def captured(
    hosted: HostedModel,
    windows: Windows,
    sites: Sequence[Site],
    interventions: tuple[Intervention, ...],
    deltas: Deltas | None = None,
    *,
    before: bool = False,
) -> Generator[None, None, dict[Site, list[Tensor]]]:
    """Read sites over a text, one batch of windows a quantum.

    Args:
        hosted: The model.
        windows: The text.
        sites: What is read.
        interventions: What is done meanwhile.
        deltas: With these modules changed.
        before: Read what arrives at the sites, before the interventions at the very same site: what an edited
            feature of an SAE finds there, and what reaches a module in which neurons or heads are scaled.

    Returns:
        Per site, per window, `(n_pos, width)` on the CPU in the model's dtype.
    """
    found: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for part in window_batches(windows):
        rows = [RowInput(ids=windows[number], interventions=interventions) for number in part]
        with added(deltas or {}):
            output = run_rows(
                hosted, rows, reads=sites, reads_before=before, keep_last=0, allow_unmatched=True
            )
        for values in output.values:
            for site in sites:
                found[site].append(values[site].cpu())
        yield
    return found


@contextmanager
def added(deltas: Deltas) -> Iterator[None]:
    """Let modules answer as with changed weights inside; the weights themselves stay as they are."""
    handles = [module.register_forward_hook(_adding(*factors)) for module, factors in deltas.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(left: Tensor, right: Tensor) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0]
        narrow, wide = right.to(x.device, torch.float32), left.to(x.device, torch.float32)
        # Two steps of shape (..., k): the product of the factors is never formed.
        return output + (x.float() @ narrow.T @ wide.T).to(output.dtype)

    return hook


def stacked(parts: Sequence[Tensor], *, after_first: bool = False) -> Tensor:
    """Join windows to `(n, width)`; `after_first` leaves out position 0, an attention sink."""
    return torch.cat([part[1:] if after_first else part for part in parts])
