"""Figures and intervals: the formulas by hand, contexts resampled together, runs scored exactly."""

from __future__ import annotations

import math

import pytest
import torch

from trephine.engine.replacements.scores import Bootstrap, PlainRun, Ratio, mean_of
from trephine.engine.runs.divergence import kl_divergence


def ratio(numerator, denominator):
    return Ratio(
        numerator=torch.tensor(numerator, dtype=torch.float64),
        denominator=torch.tensor(denominator, dtype=torch.float64),
    )


def test_a_figure_is_a_ratio_of_sums():
    """Not a mean of ratios: contexts weigh by their denominator."""
    figure = Bootstrap(2, 200, seed=0).figure("x", ratio([1.0, 6.0], [1.0, 2.0]))
    assert figure.value == pytest.approx(7 / 3)
    assert figure.low == pytest.approx(1.0)
    assert figure.high == pytest.approx(3.0)


def test_no_denominator_is_no_number():
    """Where ablation costs nothing there is nothing to score: NaN without an interval, not infinity."""
    figure = Bootstrap(2, 100, seed=0).figure("x", ratio([1.0, 1.0], [0.0, 0.0]))
    assert math.isnan(figure.value)
    assert figure.low is None


def test_differences_are_paired():
    """Two figures that differ by a constant in every context have an interval of width 0 about it."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(20, generator=generator, dtype=torch.float64)
    weights = torch.rand(20, generator=generator, dtype=torch.float64)
    found = Bootstrap(20, 500, seed=0).difference(
        "x", mean_of(values + 0.25, weights), mean_of(values, weights)
    )
    assert found.value == pytest.approx(0.25)
    assert found.low == pytest.approx(0.25)
    assert found.high == pytest.approx(0.25)


def test_the_interval_covers_as_often_as_it_says():
    """Of 100 samples of 40 contexts, the 95 % interval holds the true mean in most (88 and more)."""
    generator = torch.Generator().manual_seed(3)
    held = 0
    for number in range(100):
        values = torch.randn(40, generator=generator, dtype=torch.float64)
        figure = Bootstrap(40, 200, seed=number).figure("x", mean_of(values, torch.ones_like(values)))
        held += figure.low <= 0.0 <= figure.high
    assert held >= 88


def test_a_run_is_scored_by_the_definitions():
    """CE, KL and first choices at positions after 0, against log-softmax in float64."""
    generator = torch.Generator().manual_seed(0)
    ids = (4, 7, 1, 9, 3, 3)
    plain, other = (3 * torch.randn(6, 12, generator=generator) for _ in range(2))
    score = PlainRun(ids, plain).score(other)
    rows, following = slice(1, 5), torch.tensor(ids[2:])
    log_q = torch.log_softmax(other.double(), -1)[rows]
    assert score.ce == pytest.approx(float(-log_q[torch.arange(4), following].mean()), rel=1e-6)
    assert score.kl == pytest.approx(float(kl_divergence(plain, other)[rows].mean()), rel=1e-4)
    assert score.positions == 4
    assert score.top1 == float((plain.argmax(-1) == other.argmax(-1))[rows].double().mean())


def test_the_plain_run_scores_exactly_0():
    """KL of equal logits is 0, not rounding."""
    logits = 5 * torch.randn(6, 1000, generator=torch.Generator().manual_seed(0))
    score = PlainRun((1, 2, 3, 4, 5, 6), logits).score(logits.clone())
    assert score.kl == 0.0
    assert score.top1 == 1.0
