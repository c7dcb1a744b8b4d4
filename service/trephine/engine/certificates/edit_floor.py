"""What an exact edit moves on the measured text, beside the parent's own noise floor.

Exact edits act everywhere, and have no firing tokens to be held against. But one that moves less than a
change of arithmetic does is not told from a copy of the parent by any distance from the runtime.
"""

from __future__ import annotations

from dataclasses import dataclass

from trephine.engine.certificates.firing_floor import CLEAR


@dataclass(frozen=True, slots=True, kw_only=True)
class EditFloor:
    """Nats per token, over all measured tokens."""

    tokens: int
    floor: float
    """KL(parent || parent under other arithmetic), both floors together."""
    edit: float
    """KL(intervened || original)."""

    @property
    def clear(self) -> bool:
        """Whether what the edit moves stands above rounding."""
        return self.edit > 0.0 and self.edit >= CLEAR * self.floor

    @property
    def doubt(self) -> str:
        """What cannot be certified, and what to do; empty if the edit can be told from its absence."""
        if self.clear:
            return ""
        return (
            "the edit moves less than rounding: nothing is certified about the edit itself. Over the "
            f"{self.tokens} measured tokens it moves {self.edit:.2e} nats, and a change of arithmetic alone "
            f"{self.floor:.2e}; load the model in float32, give a text on which the edit does more (--text), "
            "or make it stronger"
        )
