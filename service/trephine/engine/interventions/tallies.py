"""How often and how far interventions wrote: what becomes the echo of every response."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from trephine.domain.interventions import Applied


@dataclass(slots=True)
class Tally:
    """How often and how far one intervention wrote."""

    index: int
    layer: int
    degraded: bool = False
    """True if a set that it names failed admission."""
    positions: int = 0
    total: Tensor | float = 0.0
    largest: Tensor | float = 0.0

    def add(self, sizes: Tensor) -> None:
        """Count the L2 sizes `(n,)` of changes."""
        self.positions += sizes.shape[0]
        self.total = self.total + sizes.sum()
        self.largest = sizes.max().clamp_min(self.largest)

    def applied(self) -> Applied:
        """Return the echo; nothing written is zero positions."""
        return Applied(
            index=self.index,
            layer=self.layer,
            positions=self.positions,
            mean_change=float(self.total) / max(self.positions, 1),
            max_change=float(self.largest),
            degraded=self.degraded,
        )
