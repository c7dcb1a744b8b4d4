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
    changed: Tensor | int = 0
    """Of these, where the new value was another than the old one."""
    total: Tensor | float = 0.0
    largest: Tensor | float = 0.0

    def add(self, sizes: Tensor) -> None:
        """Count the L2 sizes `(n,)` of changes."""
        self.positions += sizes.shape[0]
        # Not `> 0`: what was no number and became one has changed. A tensor: no device is waited for.
        self.changed = self.changed + sizes.count_nonzero()
        self.total = self.total + sizes.sum()
        self.largest = sizes.max().clamp_min(self.largest)

    def applied(self) -> Applied:
        """Return the echo; nothing written is zero positions."""
        return Applied(
            index=self.index,
            layer=self.layer,
            positions=self.positions,
            changed=int(self.changed),
            mean_change=float(self.total) / max(self.positions, 1),
            max_change=float(self.largest),
            degraded=self.degraded,
        )
