"""Intervals over texts: those of drawing texts again, at a cost that does not grow with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from trephine.engine.spurious.metrics import accuracy_figure, decision_figures, pair_figures

RESAMPLES = 4000
NAMES = (("a", "b"), ("x", "y"))


class _Largest(TorchFunctionMode):
    """Remembers the largest tensor that was made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.numbers = max(self.numbers, made.numel())
        return made


def _decisions() -> tuple[Tensor, Tensor, Tensor]:
    """Decisions, labels and attributes of 900 texts, in groups of 100, 200, 300 and 300."""
    groups = torch.tensor([0] * 100 + [1] * 200 + [2] * 300 + [3] * 300)
    draw = torch.rand(len(groups), generator=torch.Generator().manual_seed(1))
    y, sides = groups // 2, groups % 2
    right = draw < torch.tensor([0.62, 0.65, 0.9, 0.7])[groups]
    return torch.where(right, y, 1 - y), y, sides


def _drawn_again(hits: Tensor, groups: Tensor, statistic: Callable[[list[Tensor]], Tensor]) -> Tensor:
    """Draw texts with replacement within groups, the long way; return percentiles of a statistic."""
    generator, shares = torch.Generator().manual_seed(2), []
    for group in groups.unique():
        own = hits[groups == group].double()
        shares.append(own[torch.randint(len(own), (RESAMPLES, len(own)), generator=generator)].mean(1))
    return statistic(shares).quantile(torch.tensor([0.025, 0.975]).double())


@pytest.mark.parametrize("name", ["label_accuracy", "attribute_agreement", "worst_group"])
def test_intervals_are_those_of_texts_that_are_drawn_again(name):
    """At groups of hundreds; above the worst one the score interval is wider, by four points."""
    decided, y, sides = _decisions()
    found = decision_figures(decided, y, sides, NAMES, resamples=RESAMPLES, seed=0)
    figure = next(one for one in found if one.name == name)
    hits = decided == (sides if name == "attribute_agreement" else y)
    least = name == "worst_group"
    low, high = _drawn_again(
        hits,
        2 * y + sides,
        lambda shares: torch.stack(shares).amin(0) if least else torch.stack(shares).mean(0),
    ).tolist()
    assert figure.low <= low + 0.005
    assert figure.high >= high - 0.005
    assert (figure.low, figure.high) == pytest.approx((low, high), abs=0.045)


def test_the_cost_of_resamples_does_not_grow_with_texts():
    """A number per resample and group: texts times resamples were minutes that nothing could end."""
    decided, y, sides = _decisions()
    pairs = torch.stack([torch.arange(300), 900 - 300 + torch.arange(300)], 1)
    with _Largest() as largest:
        decision_figures(decided, y, sides, NAMES, resamples=RESAMPLES, seed=0)
        accuracy_figure("share", decided == y, y, resamples=RESAMPLES, seed=0)
        pair_figures(decided.float(), pairs, sides, resamples=RESAMPLES, seed=0)
    assert largest.numbers <= 4 * RESAMPLES
