"""What rounding alone does to an edited model: the floor of the very model that an export is to be equal to.

An edit may leave a model that is more sensitive to rounding than the unedited one, on the tokens on which it
acts. No export can then come closer than the intervened runtime does to itself when it computes in that type,
hooks and all, and the floor of the unedited model asks for more than arithmetic gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.export_features import Windows, intervention
from benchmarks.export_rows import MOST_OF_FLOOR, Row
from trephine.domain.interventions import Ablate, Intervention
from trephine.domain.sites import FeatureRef
from trephine.engine.divergence import kl_divergence
from trephine.engine.hosted import HostedModel
from trephine.engine.retain import windows_logits


def logits(hosted: HostedModel, windows: Windows, interventions: tuple[Intervention, ...] = ()) -> Tensor:
    """Return the runtime's answers, float32 `(n_windows, n_pos, d_vocab)`."""
    parts = [windows[n : n + 2] for n in range(0, len(windows), 2)]
    return torch.stack([each for part in parts for each in windows_logits(hosted, part, interventions)])


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Return KL per position, `(n,)`."""
    return kl_divergence(p.flatten(0, 1), q.flatten(0, 1))


def edited_floor(
    wide: HostedModel, same: HostedModel, features: Sequence[FeatureRef], windows: Windows, mask: Tensor
) -> float:
    """Return KL(intervened || intervened, computing in the stored type), nats where a feature fires.

    Args:
        wide: The parent, computing in float32.
        same: The same weights, computing in the type of its files.
        features: Ablated in both.
        windows: What is measured.
        mask: Where in them a feature fires, bool `(n,)`.
    """
    ablation = tuple(intervention(ref, Ablate()) for ref in features)
    p, q = (logits(model, windows, ablation) for model in (wide, same))
    return float(divergence(p, q)[mask].mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class Floors:
    """A graft between two floors, nats per firing token."""

    graft: Row
    edited: float

    @property
    def of_unedited(self) -> float:
        """The graft's KL in floors of the unedited model."""
        return self.graft.kl_firing / self.graft.floor_firing

    @property
    def of_edited(self) -> float:
        """The same in floors of the intervened one."""
        return self.graft.kl_firing / self.edited


def floors_table(floors: Sequence[Floors]) -> Iterator[str]:
    """Write a row per cell."""
    yield "| ablated | tokens | floor, unedited | floor, intervened | graft | / unedited | / intervened |"
    yield "|---|---|---|---|---|---|---|"
    for each in floors:
        row = each.graft
        yield (
            f"| {row.what} | {row.tokens} | {row.floor_firing:.2e} | {each.edited:.2e} | {row.kl_firing:.2e} "
            f"| {each.of_unedited:.2f} | {each.of_edited:.2f} |"
        )


def floors_target(floors: Sequence[Floors]) -> tuple[str, bool]:
    """Hold grafts against the intervened model's own rounding."""
    worst = max((each.of_edited for each in floors), default=float("inf"))
    what = f"bfloat16 graft, firing KL <= {MOST_OF_FLOOR} x the intervened model's own floor"
    return f"{what}: {worst:.3f} in the worst cell", worst <= MOST_OF_FLOOR
