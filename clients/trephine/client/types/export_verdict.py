"""What the certificate of an export comes to."""

from __future__ import annotations

from enum import StrEnum


class ExportVerdict(StrEnum):
    """The word that stands in certificate and card. A doubt is inconclusive, never a pass."""

    UNSPECIFIED = "unspecified"
    """The server is older than the word, or the certificate cannot be read."""
    PASSED = "passed"
    """All gates hold, and they tell the edit from its absence."""
    INCONCLUSIVE = "inconclusive"
    """All gates hold, and they cannot tell the edit from its absence. It is published all the same."""
    FAILED = "failed"
    """A gate was missed; nothing was published."""
