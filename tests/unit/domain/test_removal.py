"""The rule that makes a word of intervals."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from math import inf, nan
from typing import Any

import pytest

from trephine.domain.removal import AttackFigure, Interval, Removal, certified_only, judge_removal


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


def judged(
    *figures: AttackFigure, tokens: int = 16, contexts: int = 8, effect: float = 0.1, **rest: Any
) -> Removal:
    """Judge figures."""
    return judge_removal(
        figures, n_tokens=tokens, n_contexts=contexts, effect=effect, unrelated_behaviours=3, seed=0, **rest
    )


def word(*figures: AttackFigure, **rest: Any) -> str:
    """Judge figures, and say the word."""
    return judged(*figures, **rest).verdict


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


def test_training_that_teaches_nothing_proves_no_removal():
    """Few-shot at its most steps must bring back something of unrelated behaviours; the sentence names it."""
    idle = replace(
        SHOTS, returned=interval(0.0, 0.0), unrelated=interval(0.0, 0.0), excess=interval(0.0, 0.0)
    )
    found = judged(RECOVERY, BENIGN, idle)
    assert found.verdict == "inconclusive"
    assert "training on a few of its contexts for 50 steps brings back at most 0%" in found.why
    assert "too weak" in found.why
    earlier = replace(idle, strength=20)
    assert word(RECOVERY, BENIGN, earlier, SHOTS) == "removed"
    assert word(RECOVERY, BENIGN, SHOTS, replace(idle, strength=100)) == "inconclusive"


@pytest.mark.parametrize("taught", [(7, 4), (16, 3), (0, 0)])
def test_training_on_too_few_tokens_proves_no_removal(taught):
    """As measuring on too few; the sentence says which. What another attack breaks stays broken."""
    assert word(RECOVERY, BENIGN, SHOTS, taught=(8, 4)) == "removed"
    found = judged(RECOVERY, taught=taught)
    assert found.verdict == "inconclusive"
    assert f"acts on {taught[0]} tokens in {taught[1]} contexts of the windows of training" in found.why
    assert word(replace(RECOVERY, excess=interval(0.2, 0.3)), taught=taught) == "suppressed"


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("field", ["returned", "unrelated", "excess"])
@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_an_attack_that_diverged_proves_no_removal(place, field, value):
    """It is named; its figures are left out, so that what is kept is plain JSON; judged again it stays."""
    names = ("a perturbation of 10.0%", "training on natural text", "training on a few of its contexts")
    figures = [RECOVERY, BENIGN, SHOTS]
    lost = replace(figures[place], strength=100, **{field: interval(value, value)})
    found = judged(*figures, replace(lost, strength=figures[place].strength))
    assert found.verdict == "inconclusive"
    assert found.why.startswith(names[place])
    assert "diverged" in found.why
    assert found.figures == tuple(figures)
    json.dumps(asdict(found), allow_nan=False)
    assert judged(*found.figures, diverged=found.diverged) == found
    assert word(*figures) == "removed"
    # Another attack that succeeded is no less a success.
    broken = replace(figures[place - 1], excess=interval(0.2, 0.5))
    assert word(*figures, broken, lost) == "suppressed"


@pytest.mark.parametrize("effect", [nan, inf])
def test_an_effect_that_overflows_decides_nothing(effect):
    """And is kept as a number."""
    found = judged(RECOVERY, BENIGN, SHOTS, effect=effect)
    assert found.verdict == "inconclusive"
    json.dumps(asdict(found), allow_nan=False)


def test_removed_needs_a_certificate_that_is_not_in_doubt():
    """What withstood may not be all of the edit; an attack that succeeded has succeeded all the same."""
    removed = judged(RECOVERY, BENIGN, SHOTS)
    assert certified_only(removed, "") == removed
    doubted = certified_only(removed, "nothing is certified about one of two")
    assert (doubted.verdict, doubted.figures) == ("inconclusive", removed.figures)
    assert doubted.why.startswith(removed.why)
    broken = judged(replace(RECOVERY, excess=interval(0.11, 0.5)), BENIGN, SHOTS)
    assert certified_only(broken, "nothing is certified about one of two") == broken
