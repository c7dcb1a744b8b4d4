"""Intervals hold what they say, also over the fewest units that are allowed."""

from __future__ import annotations

from math import comb, isnan, nan

import pytest
import torch

from trephine.engine.edit_evaluation.figures import Resamples
from trephine.engine.edit_evaluation.intervals import of_change, of_share, widened

DRAWS = 300


def missed(units: int, log_size: float, share: float = 1.0) -> tuple[float, float]:
    """How often the true mean of skewed damage lies above and below the interval, over seeded samples."""
    generator = torch.Generator().manual_seed(1)
    truth = share * float(torch.tensor(log_size**2 / 2, dtype=torch.float64).exp())
    above = below = 0
    for seed in range(DRAWS):
        sizes = (torch.randn(units, generator=generator, dtype=torch.float64) * log_size).exp()
        sizes *= (torch.rand(units, generator=generator) < share).double()
        tokens = torch.full((units,), 31.0, dtype=torch.float64)
        found = Resamples.of(units, resamples=500, seed=seed).ratio("kl", sizes * 31, tokens, "")
        assert found.low is not None
        assert found.high is not None
        assert found.low <= found.value <= found.high
        above, below = above + (found.high < truth), below + (found.low > truth)
    return above / DRAWS, below / DRAWS


@pytest.mark.parametrize(
    ("units", "log_size", "share", "at_most"),
    [
        (8, 0.5, 1.0, 0.05),
        (8, 1.0, 1.0, 0.08),
        (8, 0.5, 0.6, 0.04),
        (16, 0.5, 1.0, 0.06),
        (16, 0.5, 0.3, 0.04),
    ],
)
def test_damage_is_not_called_small_too_often(units, log_size, share, at_most):
    """The truth is seldom above the interval; above percentiles it is four to eight times too often."""
    above, below = missed(units, log_size, share)
    assert above <= at_most
    assert below <= 0.04


def test_an_interval_is_never_narrower_than_its_percentiles():
    """Whatever the figure: a word can only become more careful."""
    generator = torch.Generator().manual_seed(2)
    for units in (8, 30, 200):
        resamples = Resamples.of(units, resamples=400, seed=units)
        ends = torch.tensor((0.025, 0.975), dtype=torch.float64)
        for values in (torch.randn(units, generator=generator).double(), torch.rand(units).double() ** 4):
            found = resamples.mean("x", values, "")
            low, high = values[resamples.draws].mean(-1).quantile(ends).tolist()
            assert found.low <= low
            assert found.high >= high
        seen = (torch.rand(units, generator=generator) < 0.8).double()
        low, high = seen[resamples.draws].mean(-1).quantile(ends).tolist()
        (_, shares), (_, changes) = of_share(seen, resamples.draws), of_change(seen, resamples.draws)
        for least, most in (shares, changes):
            assert least <= low
            assert most >= high


def test_answers_that_did_not_change_leave_a_doubt():
    """Eight items of which none is lost do not show that fewer than 5 % are; 64 do."""
    for units, high in ((8, 0.277), (64, 0.042)):
        draws = Resamples.of(units, resamples=100, seed=0).draws
        value, (low, most) = of_change(torch.zeros(units, dtype=torch.float64), draws)
        assert value == 0
        assert (low, most) == pytest.approx((-high, high), abs=1e-3)
        value, (low, most) = of_share(torch.ones(units, dtype=torch.float64), draws)
        assert (value, most) == (1.0, 1.0)
        assert 1 - low >= 1 - 0.025 ** (1 / units) - 0.04


@pytest.mark.parametrize(("units", "lost"), [(8, 0.05), (8, 0.2), (16, 0.1), (24, 0.1), (40, 0.05)])
def test_losses_of_items_are_not_called_small_too_often(units, lost):
    """Over all numbers of losses: the true loss is beyond the interval in at most 3.5 % of samples."""
    draws = Resamples.of(units, resamples=200, seed=0).draws
    beyond = 0.0
    for count in range(units + 1):
        seen = torch.zeros(units, dtype=torch.float64)
        seen[:count] = -1.0
        _, (low, _) = of_change(seen, draws)
        if low > -lost:
            beyond += comb(units, count) * lost**count * (1 - lost) ** (units - count)
    assert beyond <= 0.035


def test_the_widening_is_that_of_students_t():
    """Its quantile over the normal's, and the root of n over n - 1."""
    for units, student in ((8, 2.3646), (12, 2.2010), (30, 2.0452), (200, 1.9720)):
        assert widened(units) == pytest.approx(student / 1.959964 * (units / (units - 1)) ** 0.5, abs=1e-3)
    assert widened(1) == 1.0


def test_what_is_no_number_stays_none():
    """And one unit, or units that are all alike, have an interval without width."""
    resamples = Resamples.of(8, resamples=100, seed=0)
    found = resamples.mean("kl", torch.tensor([nan] * 8, dtype=torch.float64), "", (0.0, 1.0))
    assert all(map(isnan, (found.value, found.low, found.high)))
    alike = resamples.mean("kl", torch.full((8,), 0.25, dtype=torch.float64), "")
    assert (alike.value, alike.low, alike.high) == (0.25, 0.25, 0.25)
    single = Resamples.of(1, resamples=100, seed=0).mean("kl", torch.ones(1, dtype=torch.float64), "")
    assert (single.low, single.high) == (1.0, 1.0)
