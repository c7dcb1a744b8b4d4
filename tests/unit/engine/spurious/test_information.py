"""Bits that margins of texts and twins tell of the label, and which of two heads tells more."""

from __future__ import annotations

import math

import pytest
import torch

from trephine.domain.spurious_removal import ChoicePoint
from trephine.engine.spurious.best import best_point
from trephine.engine.spurious.information import Paired

Y = torch.arange(40) % 2
SIDES = 2.0 * Y.double() - 1


def _told(texts: torch.Tensor, twins: torch.Tensor) -> Paired:
    return Paired(labels=Y, texts=texts.double(), twins=twins.double())


def _noisy(spread: float, *, seed: int = 0) -> Paired:
    generator = torch.Generator().manual_seed(seed)
    noise = spread * torch.randn(2, len(Y), generator=generator).double()
    return _told(SIDES + noise[0], SIDES + noise[1])


def test_a_decision_that_follows_the_attribute_tells_nothing():
    """Right on texts and wrong on twins, or wrong throughout."""
    for decided in (_told(SIDES, -SIDES), _told(-SIDES, -SIDES), _told(0 * SIDES, 0 * SIDES)):
        assert decided.mean(decided.information()) == (0.0, 0.0)
    assert _told(SIDES, -SIDES).flips == 1.0


def test_right_decisions_tell_nearly_all_and_never_all():
    """One miss counts besides, so that more texts tell more."""
    told = [_told(SIDES, SIDES)]
    few = Paired(labels=Y[:8], texts=SIDES[:8], twins=SIDES[:8])
    bits = [one.mean(one.information())[0] for one in (*told, few)]
    assert 0.7 < bits[1] < bits[0] < 1.0
    assert told[0].flips == 0.0


def test_the_slope_is_that_of_most_information():
    """Against a search; units of the margins say nothing."""
    told = _noisy(1.5)
    found = told.mean(told.information())[0]
    right = torch.cat([told.texts * SIDES, told.twins * SIDES])
    losses = [float(torch.nn.functional.softplus(-k * right).mean()) for k in torch.linspace(0, 4, 401)]
    assert found == pytest.approx(1 - min(losses) / math.log(2), abs=0.01)
    scaled = _told(100 * told.texts, 100 * told.twins)
    torch.testing.assert_close(scaled.information(), told.information())


def test_one_wild_margin_hides_nothing():
    """All are right; one is so by ten thousand times as much, which is no reason to tell nothing."""
    wild = SIDES.clone()
    wild[0] *= 1e4
    bits = [one.mean(one.information())[0] for one in (_told(SIDES, SIDES), _told(wild, SIDES))]
    assert bits[1] > 0.8 * bits[0]


def test_either_label_counts_half():
    """However many texts it has; the error is that of a mean of two means."""
    labels = torch.tensor([0] * 6 + [1] * 2)
    values = torch.tensor([0.0, 0.2, 0.4, 0.0, 0.2, 0.4, 1.0, 0.6]).double()
    decided = Paired(labels=labels, texts=values, twins=values)
    value, error = decided.mean(values)
    assert value == pytest.approx((0.2 + 0.8) / 2)
    assert error == pytest.approx(math.sqrt(values[:6].var() / 6 / 4 + values[6:].var() / 2 / 4))
    assert decided.mean(values)[1] > 0
    alone = Paired(labels=labels[:7], texts=values[:7], twins=values[:7])
    assert alone.mean(values[:7])[1] >= 0.5, "one text of a label tells nothing of its mean"


def _point(count: int, told: Paired) -> ChoicePoint:
    criterion, error = told.mean(told.information())
    return ChoicePoint(
        count=count, criterion=criterion, ambiguous_accuracy=1.0, leak=0.0, error=error, erased=bool(count)
    )


def test_heads_are_compared_text_by_text():
    """A little less on every text is less, though chance moves more; a difference by chance is none."""
    nothing = _told(SIDES, -SIDES)
    better = _noisy(0.9)
    worse = _told(better.texts - 0.06 * SIDES, better.twins - 0.06 * SIDES)
    other = _noisy(0.9, seed=3)
    points = [_point(count, told) for count, told in ((0, nothing), (1, worse), (20, better))]
    assert points[2].criterion - points[1].criterion < points[2].error
    assert best_point(points) == 1, "by errors of each alone they are alike"
    assert best_point(points, [nothing, worse, better]) == 2
    alike = [(0, nothing), (1, other), (20, better)]
    points = [_point(count, told) for count, told in alike]
    assert best_point(points, [told for _, told in alike]) == 1
