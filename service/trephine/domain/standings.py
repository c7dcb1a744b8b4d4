"""How a predictor does against a baseline."""

from __future__ import annotations

from enum import StrEnum


class Standing(StrEnum):
    """How a predictor does against a baseline. Doubt is never a pass."""

    BEATS = "BEATS"
    DOES_NOT_BEAT = "DOES NOT BEAT"
    INCONCLUSIVE = "INCONCLUSIVE"
