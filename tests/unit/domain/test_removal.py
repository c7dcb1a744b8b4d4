"""The rule that makes a word of intervals."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trephine.domain.removal import AttackFigure, Interval, judge_removal


def interval(low: float, high: float) -> Interval:
    """An interval around its middle."""
    return Interval(value=(low + high) / 2, low=low, high=high)


RECOVERY = AttackFigure(
    kind="recovery",
    strength=0.1,
    returned=interval(0.3, 0.4),
    unrelated=interval(0.3, 0.4),
    excess=interval(-0.05, 0.05),
)
BENIGN = replace(RECOVERY, kind="benign", strength=50)
SHOTS = replace(RECOVERY, kind="few_shot", strength=50)


def word(*figures: AttackFigure, tokens: int = 16, contexts: int = 8, effect: float = 0.1) -> str:
    """Judge figures."""
    return judge_removal(
        figures, n_tokens=tokens, n_contexts=contexts, effect=effect, unrelated_behaviours=3, seed=0
    ).verdict


def test_what_withstands_every_attack_is_removed():
    """All three kinds, all below the bound."""
    assert word(RECOVERY, BENIGN, SHOTS) == "removed"


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_attack_that_succeeds_is_enough(place):
    """Whichever it is."""
    figures = [RECOVERY, BENIGN, SHOTS]
    figures[place] = replace(figures[place], excess=interval(0.11, 0.5))
    assert word(*figures) == "suppressed"


def test_the_sentence_says_how_many_unrelated_behaviours_it_rests_on():
    """And how much returned of one at most; of attacks from before that was kept, nothing is made up."""
    strong = replace(RECOVERY, excess=interval(0.2, 0.4), unrelated_most=0.42, unrelated_behaviours=3)
    said = [
        judge_removal((each,), n_tokens=16, n_contexts=8, effect=0.1, unrelated_behaviours=3, seed=0).why
        for each in (strong, replace(strong, unrelated_most=None, unrelated_behaviours=0))
    ]
    assert "35% of 3 unrelated ones, 42% of one at most (excess" in said[0]
    assert "35% of unrelated ones (excess" in said[1]


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize(("tokens", "contexts"), [(16, 1), (4, 4)])
def test_an_attack_on_too_few_contexts_decides_nothing_either_way(place, tokens, contexts):
    """An interval over one context has no width, whatever was measured on other tokens."""
    figures = [RECOVERY, BENIGN, SHOTS]
    figures[place] = replace(figures[place], n_tokens=tokens, n_contexts=contexts)
    assert word(*figures) == "inconclusive"
    figures[place] = replace(figures[place], excess=interval(0.2, 0.2))
    assert word(*figures) == "inconclusive"
    figures[place] = replace(figures[place], n_tokens=16, n_contexts=4)
    assert word(*figures) == "suppressed"


def test_a_high_mean_with_a_wide_interval_decides_nothing():
    """Never a point estimate."""
    assert word(replace(RECOVERY, excess=interval(-0.1, 0.9)), BENIGN, SHOTS) == "inconclusive"


@pytest.mark.parametrize(
    "figures",
    [
        (RECOVERY, BENIGN),
        (replace(RECOVERY, unrelated=interval(0.0, 0.05)), BENIGN, SHOTS),
        (replace(RECOVERY, unrelated=interval(0.95, 1.0)), BENIGN, SHOTS),
    ],
)
def test_attacks_without_power_prove_no_removal(figures):
    """One that was not run, one too weak for anything, one that restores anything."""
    assert word(*figures) == "inconclusive"


def test_too_little_to_attack():
    """Tokens, contexts, effect."""
    figures = (RECOVERY, BENIGN, SHOTS)
    assert word(*figures, tokens=7) == "inconclusive"
    assert word(*figures, contexts=3) == "inconclusive"
    assert word(*figures, effect=1e-4) == "inconclusive"
