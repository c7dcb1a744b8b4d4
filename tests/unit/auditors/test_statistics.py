"""Item-wise tests and power: they must be right about what they claim, since verdicts rest on them."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from trephine.auditors.unfaithful_reasoning.statistics import (
    CONTROLS,
    estimate,
    holm,
    items_for_power,
    power,
    sign_flip_p,
)


def exact_p(ones: int) -> float:
    """Sign-flip p-value when `ones` items differ by 1 and all others not at all."""
    return 0.5**ones


@pytest.mark.parametrize("ones", [3, 5, 7])
def test_sign_flip_agrees_with_the_exact_value(ones: int):
    """The Monte-Carlo p-value is the exact one within its sampling error and its +1 correction."""
    found = sign_flip_p([1.0] * ones + [0.0] * (24 - ones), seed=1)
    spread = (exact_p(ones) / CONTROLS) ** 0.5
    assert found == pytest.approx(exact_p(ones), abs=5 * spread + 2 / CONTROLS)


def test_no_difference_is_no_evidence():
    """Without any difference every relabeling is as large, so p is 1."""
    assert sign_flip_p([0.0] * 24, seed=0) == 1.0


def test_differences_in_the_other_direction_are_no_evidence():
    """The test is one-sided: a hint that does less than its control gives a large p."""
    assert sign_flip_p([-1.0] * 24, seed=0) == 1.0


def test_p_is_never_zero():
    """The floor of (1 + #) / (controls + 1) is 1 / 1000."""
    assert sign_flip_p([1.0] * 24, seed=0) == pytest.approx(1 / (CONTROLS + 1))


def test_false_positives_stay_at_their_level():
    """On exchangeable labels p <= 0.05 comes up in about 5 % of the experiments, not more."""
    draw = np.random.default_rng(0)
    trials = [
        sign_flip_p((draw.random(24) - draw.random(24)).tolist(), seed=trial) <= 0.05 for trial in range(400)
    ]
    assert sum(trials) / len(trials) <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def test_holm_multiplies_by_what_is_left_and_keeps_the_order():
    """Holm's adjustment of (0.01, 0.04, 0.03) is (0.03, 0.06, 0.06)."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert holm([0.9, 0.8]) == (1.0, 1.0)


def test_power_agrees_with_the_binomial_where_it_is_known():
    """Without noise an all-or-nothing effect is found if enough items are hit: a binomial tail."""
    n, effect, needed = 24, 0.4, 7  # 2^-7 is below 0.05 / 4, 2^-6 is not
    exact = sum(comb(n, k) * effect**k * (1 - effect) ** (n - k) for k in range(needed, n + 1))
    found = power(n, effect=effect, noise=0.0, resamples=5, tests=4, seed=0)
    assert found == pytest.approx(exact, abs=0.1)


def test_power_grows_with_items_and_falls_with_noise():
    """More items help, noisy controls hurt, no items give none."""
    quiet = [power(n, effect=0.4, noise=0.0, resamples=2, tests=4, seed=0) for n in (6, 12, 24)]
    assert quiet == sorted(quiet)
    assert quiet[-1] > power(24, effect=0.4, noise=0.4, resamples=2, tests=4, seed=0)
    assert power(0, effect=0.4, noise=0.0, resamples=2, tests=4, seed=0) == 0.0


def test_items_for_power_reach_it():
    """The number that is recommended gives the power that is asked for."""
    needed = items_for_power(effect=0.4, noise=0.0, resamples=5, tests=4, seed=0)
    assert needed is not None
    assert power(needed, effect=0.4, noise=0.0, resamples=5, tests=4, seed=0) >= 0.8
    assert items_for_power(effect=0.1, noise=1.0, resamples=5, tests=4, seed=0) is None


def test_bootstrap_interval_covers_and_repeats():
    """The interval holds the mean, is narrow for equal items, and repeats for a seed."""
    spread = estimate([0.0, 1.0] * 12, seed=3)
    assert spread.low < spread.value == 0.5 < spread.high
    assert spread == estimate([0.0, 1.0] * 12, seed=3)
    even = estimate([0.25] * 10, seed=3)
    assert even.low == even.value == even.high == 0.25
