"""What is asked of a removal before it is begun."""

from __future__ import annotations

from dataclasses import dataclass

from trephine.domain.commands import Command, Progress
from trephine.domain.spurious_removal import RemoveSpuriousFeatures


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedSpuriousRemoval:
    """What is known of a removal before any work."""

    features: int
    """That may go."""
    texts: int
    """That are read, examples of the attribute included and twins not."""
    tokens: int
    """Of all of them, as the head reads them."""
    longest: int
    """Tokens of the longest one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSpuriousRemoval(Command[CheckedSpuriousRemoval, Progress]):
    """Refuse whatever a removal would be refused for before its first forward pass."""

    command: RemoveSpuriousFeatures
