"""Decisions counted per group: what was right before, after, and both times."""

from __future__ import annotations

from itertools import product

import torch

from trephine.domain.spurious_outcomes import Tally
from trephine.engine.spurious.metrics import decision_figures
from trephine.engine.spurious.outcome import tally


def test_decisions_are_counted_text_by_text() -> None:
    """Of five texts in a group two were right both times, one only before, one only after."""
    inside = torch.tensor([True, True, False, True, True, True])
    before = torch.tensor([True, True, True, True, False, False])
    after = torch.tensor([True, True, True, False, True, False])
    assert tally("a/x", inside, before, after) == Tally(name="a/x", texts=5, before=3, after=3, both=2)


def test_tables_name_every_group_apart() -> None:
    """With slashes in names, too: four groups are four rows, each with its own share."""
    labels, attributes = (torch.tensor(side) for side in zip(*product((0, 1), (0, 1)), strict=True))
    decided = torch.tensor([0, 1, 0, 1])
    names = (("a", "a/b"), ("b/c", "c"))
    figures = decision_figures(decided, labels, attributes, names, resamples=10, seed=0)
    groups = {one.name: one.value for one in figures if one.name.startswith("group ")}
    assert groups == {
        'group a/"b/c"': 1.0,
        "group a/c": 0.0,
        'group "a/b"/"b/c"': 0.0,
        'group "a/b"/c': 1.0,
    }
