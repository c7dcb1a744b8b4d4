"""Ranks, slopes, intervals and verdicts."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import spearmanr

from trephine.domain.findings import Figure
from trephine.domain.verification import Standing
from trephine.engine.attribution.correlations import ranks, slope, spearman
from trephine.engine.verification.faithfulness import p_value
from trephine.engine.verification.statistics import Bootstrap, Paired, standing


def test_ranks_average_ties():
    """Equal values share the mean of their places, up to a constant."""
    found = ranks(torch.tensor([[3.0, 1.0, 1.0, 7.0]]))[0]
    assert (found - found.min()).tolist() == [1.5, 0.0, 0.0, 2.5]


def test_batched_statistics_are_those_of_one_sample():
    """Many resamples at once give what each gives alone, ties included, and what scipy gives."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 5, (7, 40), generator=generator).double()
    y = torch.randn(7, 40, generator=generator, dtype=torch.float64)
    for row in range(7):
        expected = spearmanr(x[row].numpy(), y[row].numpy()).statistic
        assert float(spearman(x, y)[row]) == pytest.approx(expected, abs=1e-12)
        assert float(spearman(x[row], y[row])) == pytest.approx(expected, abs=1e-12)
        alone = float(torch.linalg.lstsq(x[row, :, None], y[row, :, None]).solution)
        assert float(slope(x, y)[row]) == pytest.approx(alone, abs=1e-12)
    assert float(spearman(torch.zeros(5), torch.arange(5.0))) == 0.0


def test_intervals_hold_the_estimate_and_shrink():
    """A percentile interval holds its estimate, and more ablations make it narrower."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(400, generator=generator, dtype=torch.float64)
    y = x + torch.randn(400, generator=generator, dtype=torch.float64)
    bootstrap = Bootstrap(samples=400, seed=0)
    few, many = (bootstrap.figure("r", spearman, x[:n], y[:n]) for n in (40, 400))
    for figure in (few, many):
        assert figure.low < figure.value < figure.high
    assert many.high - many.low < few.high - few.low


def test_paired_differences_see_who_is_better():
    """A predictor with less noise beats one with more; the same predictor beats itself by exactly nothing."""
    generator = torch.Generator().manual_seed(4)
    y = torch.randn(120, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, 120, generator=generator, dtype=torch.float64)
    good, bad = Paired(versions=(y + 0.2 * noise[0])[None]), Paired(versions=(y + 3 * noise[1])[None])
    bootstrap = Bootstrap(samples=300, seed=0)
    assert standing(bootstrap.difference("d", good, bad, y)) is Standing.BEATS
    assert standing(bootstrap.difference("d", bad, good, y)) is Standing.DOES_NOT_BEAT
    same = bootstrap.difference("d", good, good, y)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)


def test_unsigned_comparison_forgets_signs():
    """A predictor that knows sizes alone is compared on sizes."""
    y = torch.tensor([-3.0, 2.0, -1.0, 0.5], dtype=torch.float64)
    sizes = Paired(versions=y.abs()[None], signed=False)
    assert float(sizes.correlation(y)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.2, Standing.BEATS),
        (0.0, 0.2, Standing.INCONCLUSIVE),
        (-0.1, 0.2, Standing.INCONCLUSIVE),
        (-0.2, 0.0, Standing.DOES_NOT_BEAT),
        (-0.2, -0.1, Standing.DOES_NOT_BEAT),
    ],
)
def test_doubt_is_never_a_pass(low, high, verdict):
    """Only an interval above zero beats; one that touches it does not."""
    assert standing(Figure(name="d", value=0.1, low=low, high=high)) is verdict


def test_what_is_no_number_ranks_nowhere_and_wins_nothing():
    """An ablation that overflows gives no correlation, no interval, no p and no verdict."""
    y = torch.randn(60, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    broken = y.clone()
    broken[7] = float("nan")
    assert float(spearman(y, y)) == pytest.approx(1.0)
    for hole in (float("nan"), float("inf")):
        broken[7] = hole
        assert math.isnan(float(spearman(y, broken)))
        assert math.isnan(float(spearman(torch.stack([y, y]), torch.stack([y, broken]))[1]))
        good, bad = Paired(versions=y[None]), Paired(versions=-y[None])
        found = Bootstrap(samples=50, seed=0).difference("d", good, bad, broken)
        assert standing(found) is Standing.INCONCLUSIVE
        assert math.isnan(p_value(torch.zeros(20), hole))
        assert math.isnan(p_value(broken, 9.0))
    assert p_value(torch.zeros(20), 1.0) == pytest.approx(1 / 21)
    assert p_value(torch.ones(20), 1.0) == 1.0
