"""Intervals of the report's tables: none closes because few texts were all right, or all wrong."""

from __future__ import annotations

from math import hypot

import pytest
import torch

from trephine.domain.shares import mean, share, wilson
from trephine.domain.spurious_outcomes import Ground, Tally, outcome_on
from trephine.engine.spurious.metrics import accuracy_figure, decision_figures, pair_figures

NAMES = (("Q", "W"), ("X", "Z"))


def _figures(sizes: dict[tuple[int, int], int], right: set[tuple[int, int]]):
    """So many texts per group, all of which are right or all wrong."""
    groups = [group for group, count in sizes.items() for _ in range(count)]
    labels, attributes = (torch.tensor(side) for side in zip(*groups, strict=True))
    hit = torch.tensor([group in right for group in groups])
    decided = torch.where(hit, labels, 1 - labels)
    found = decision_figures(decided, labels, attributes, NAMES, resamples=100, seed=0)
    return {one.name: one for one in found}


def test_a_wrong_text_alone_is_no_zero_for_sure() -> None:
    """Wilson's of one text reaches 79 %; the worst group is bounded by every group, as in the outcome."""
    sizes = {(0, 0): 40, (0, 1): 1, (1, 0): 8, (1, 1): 40}
    found = _figures(sizes, {(0, 0), (1, 0), (1, 1)})
    alone, worst = found["group Q/Z"], found["worst_group"]
    assert (alone.value, alone.low, alone.high) == (0, 0, wilson(0, 1)[1])
    assert (worst.value, worst.low, worst.high) == (0, 0, share(0, 1, least_of=2).high), "it, or the eight"
    few = found["group W/X"]
    assert (few.value, few.low, few.high) == (1, wilson(8, 8)[0], 1)
    tallies = [
        Tally(
            name=f"{label}{attribute}",
            texts=count,
            before=count,
            after=count * ((label, attribute) != (0, 1)),
        )
        for (label, attribute), count in sizes.items()
    ]
    outcome = outcome_on(Ground.TEST, tallies)
    assert (worst.low, worst.high) == (outcome.after.low, outcome.after.high)
    mixed = found["label_accuracy"]
    assert mixed.value == pytest.approx(0.75)
    assert mixed.low < 0.75 < mixed.high


def test_figures_of_all_texts_do_not_close_either() -> None:
    """Three right texts, and two right pairs of one kind each."""
    right, y = torch.ones(3, dtype=torch.bool), torch.tensor([0, 1, 1])
    found = accuracy_figure("ambiguous_accuracy", right, y, resamples=100, seed=0)
    assert (found.value, found.low, found.high) == (1, wilson(3, 3)[0], 1)
    margins, pairs = torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([[0, 1], [2, 3]])
    ranked = pair_figures(margins, pairs, torch.tensor([0, 1, 1, 0]), resamples=100, seed=0)
    assert [one.name for one in ranked] == ["pair_accuracy", "worst_pairs"]
    assert [one.low for one in ranked] == [wilson(2, 2)[0], wilson(1, 1)[0]]


def test_a_mean_of_shares_has_the_spread_of_all() -> None:
    """Of one share it is that share's; of two the squares of their distances add up, halved."""
    one, other = share(3, 10), share(40, 50)
    alone = mean([one])
    assert (alone.value, alone.low, alone.high) == pytest.approx((one.value, one.low, one.high))
    both = mean([one, other])
    assert both.value == pytest.approx(0.55)
    assert both.low == pytest.approx(0.55 - hypot(0.3 - one.low, 0.8 - other.low) / 2)
    assert both.high == pytest.approx(0.55 + hypot(one.high - 0.3, other.high - 0.8) / 2)
