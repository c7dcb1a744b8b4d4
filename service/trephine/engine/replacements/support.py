"""Support rules: which features are active, and what their activations are.

An active feature's activation equals its pre-activation under every rule here; that is what attribution
builds on. So a feature whose pre-activation passes a threshold below 0 and is then clamped to 0 by a ReLU
is not active: nothing moves when its pre-activation does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor


class SupportOf(Protocol):
    """A support rule that can be asked about a few features."""

    @property
    def pointwise(self) -> bool:
        """True if a feature's support depends on its own pre-activation alone."""
        ...

    def __call__(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """Return activations and boolean support of pre-activations `(..., d_sae)`."""
        ...

    def at(self, indices: Sequence[int]) -> SupportOf:
        """Return the rule for a few features; only meaningful where it is pointwise."""
        ...

    def thresholds(self, d_sae: int) -> Tensor | None:
        """Return `(d_sae,)`, what a pre-activation must exceed; None without thresholds of its own."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """JumpReLU, gated, and ReLU as the case of 0: active strictly above `threshold`."""

    threshold: Tensor | None = None
    """`(d_sae,)`; None for 0."""
    clamped: bool = True
    """True where a ReLU stands before the mask (SAELens), so that a threshold below 0 acts as 0. False where
    a pre-activation between a threshold below 0 and 0 is passed on as it is (circuit-tracer)."""
    pointwise: bool = True

    def __call__(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """Mask strictly: a pre-activation equal to its threshold is not active."""
        active = pre > (0.0 if self.threshold is None else self._effective(pre))
        return torch.where(active, pre, 0.0), active

    def at(self, indices: Sequence[int]) -> Threshold:
        """Keep a few features' thresholds."""
        if self.threshold is None:
            return self
        return replace(self, threshold=self.threshold[list(indices)])

    def thresholds(self, d_sae: int) -> Tensor | None:
        """Return effective thresholds, float32 or wider; zeros for a ReLU."""
        if self.threshold is None:
            return torch.zeros(d_sae)
        return self._effective(torch.zeros((), dtype=torch.float32, device=self.threshold.device))

    def _effective(self, like: Tensor) -> Tensor:
        if self.threshold is None:
            return torch.zeros_like(like)
        wide = self.threshold.to(torch.promote_types(self.threshold.dtype, like.dtype))
        return wide.clamp_min(0.0) if self.clamped else wide


@dataclass(frozen=True, slots=True, kw_only=True)
class TopK:
    """The k largest pre-activations of a position that are above 0."""

    k: int
    clamped: bool = True
    """False where no ReLU follows, so that a pre-activation below 0 that is among the k is kept."""
    pointwise: bool = False

    def __call__(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """Select by value; ties are broken as `torch.topk` does."""
        active = _largest(pre, self.k) & (pre > 0 if self.clamped else pre != 0)
        return torch.where(active, pre, 0.0), active

    def at(self, indices: Sequence[int]) -> TopK:
        """Return itself: the rule needs all pre-activations."""
        return self

    def thresholds(self, d_sae: int) -> Tensor | None:
        """It has none of its own."""
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class AbsTopK:
    """The k largest pre-activations by magnitude; their sign is kept."""

    k: int
    pointwise: bool = False

    def __call__(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """Select by magnitude."""
        active = _largest(pre.abs(), self.k) & (pre != 0)
        return torch.where(active, pre, 0.0), active

    def at(self, indices: Sequence[int]) -> AbsTopK:
        """Return itself: the rule needs all pre-activations."""
        return self

    def thresholds(self, d_sae: int) -> Tensor | None:
        """It has none of its own."""
        return None


def _largest(values: Tensor, k: int) -> Tensor:
    chosen = values.topk(min(k, values.shape[-1]), dim=-1, sorted=False).indices
    return torch.zeros_like(values, dtype=torch.bool).scatter_(-1, chosen, True)
