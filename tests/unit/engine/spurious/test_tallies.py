"""Decisions counted per group: what was right before, after, and both times."""

from __future__ import annotations

import torch

from trephine.domain.spurious_outcomes import Tally
from trephine.engine.spurious.outcome import tally


def test_decisions_are_counted_text_by_text() -> None:
    """Of five texts in a group two were right both times, one only before, one only after."""
    inside = torch.tensor([True, True, False, True, True, True])
    before = torch.tensor([True, True, True, True, False, False])
    after = torch.tensor([True, True, True, False, True, False])
    assert tally(inside, before, after) == Tally(texts=5, before=3, after=3, both=2)
