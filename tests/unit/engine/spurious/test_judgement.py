"""Judges call planted features by what they are, and abstain on noise."""

from __future__ import annotations

import pytest
import torch

from trephine.domain.spurious_removal import Judge, JudgeEvidence, JudgingRules, Standing
from trephine.engine.features.statistics import benjamini_hochberg
from trephine.engine.spurious.judgement import (
    by_counterfactuals,
    by_examples,
    by_groups,
    by_invariance,
    combined,
    separation,
)

RULES = JudgingRules()
TASK, SPURIOUS, BOTH, NOISE = range(4)


def _contributions(labels, attributes, seed):
    """Four features: of the label, of the attribute, of both, of nothing."""
    generator = torch.Generator().manual_seed(seed)
    y, a = 2.0 * labels - 1, 2.0 * attributes - 1
    clean = torch.stack([y, a, 0.6 * y + 0.4 * a, torch.zeros_like(y)], 1)
    return clean + 0.2 * torch.randn(clean.shape, generator=generator)


def _standings(verdicts):
    adjusted = benjamini_hochberg(verdicts.p_value)
    return [verdicts.evidence(place, RULES, adjusted).standing for place in range(4)]


Y = torch.arange(80) % 2
CONFOUNDED = separation(_contributions(Y, Y, 0), Y)


def test_examples_of_the_attribute_tell_them_apart():
    """Labels of the examples do not matter: here they are all 0."""
    a = torch.arange(60) % 2
    found = by_examples(CONFOUNDED, 1.0, _contributions(torch.zeros(60), a, 1), a)
    assert _standings(found)[:3] == [Standing.TASK, Standing.SPURIOUS, Standing.UNDECIDED]
    assert _standings(found)[NOISE] is not Standing.SPURIOUS
    assert float(found.attribute_effect[SPURIOUS]) == pytest.approx(2, abs=0.2)
    assert float(found.label_effect[TASK]) == pytest.approx(2, abs=0.2)


def test_counterfactual_edits_tell_them_apart():
    """The sign of the change follows the side that a text was on."""
    found = by_counterfactuals(CONFOUNDED, 1.0, _contributions(Y, Y, 2), _contributions(Y, 1 - Y, 3), Y)
    assert _standings(found)[:2] == [Standing.TASK, Standing.SPURIOUS]
    assert float(found.attribute_effect[SPURIOUS]) == pytest.approx(2, abs=0.2)


def test_a_partial_pairing_is_taken_off():
    """Where label and attribute go together in part, T holds only that part of the attribute's effect."""
    y = torch.arange(400) % 2
    a = torch.where(torch.arange(400) % 10 < 2, 1 - y, y)  # 80 % go together: a pairing of 0.6
    confounded = separation(_contributions(y, a, 4), y)
    other = torch.arange(60) % 2
    found = by_examples(confounded, 0.6, _contributions(torch.zeros(60), other, 5), other)
    assert float(found.label_effect[SPURIOUS]) == pytest.approx(0, abs=0.2)
    assert _standings(found)[:2] == [Standing.TASK, Standing.SPURIOUS]


def test_groups_tell_them_apart():
    """Least squares on label and attribute, of all four groups."""
    y, a = torch.arange(80) % 2, torch.arange(80) // 2 % 2
    found = by_groups(_contributions(y, a, 6), y, a)
    assert _standings(found)[:2] == [Standing.TASK, Standing.SPURIOUS]


def test_what_is_not_the_same_in_every_environment_is_spurious():
    """The shortcut turns round in the second environment, the task does not."""
    y = torch.arange(160) % 2
    environment = torch.arange(160) // 80
    a = torch.where(environment == 0, y, 1 - y)
    found = by_invariance(Judge.ENVIRONMENTS, _contributions(y, a, 7), y, environment)
    assert _standings(found)[:2] == [Standing.TASK, Standing.SPURIOUS]


def test_one_environment_says_nothing():
    """Nor do two with too few texts of a label."""
    y = torch.arange(40) % 2
    assert by_invariance(Judge.ENVIRONMENTS, _contributions(y, y, 8), y, torch.zeros(40)) is None
    few = (torch.arange(40) > 35).long()
    assert by_invariance(Judge.ENVIRONMENTS, _contributions(y, y, 8), y, few) is None


def test_noise_is_called_spurious_as_rarely_as_was_asked():
    """Of 2,000 features of nothing none survives the correction, though 5 % have p < 0.05."""
    a = torch.arange(60) % 2
    noise = torch.randn(60, 2000, generator=torch.Generator().manual_seed(9))
    found = by_examples(torch.zeros(2000), 1.0, noise, a)
    assert 50 < int((found.p_value < 0.05).sum()) < 180
    assert int((benjamini_hochberg(found.p_value) <= 0.05).sum()) == 0


FEW = 8
"""As many as a judge must have."""


def _of_pairs(draw):
    return by_counterfactuals(0.2 * draw(1)[0], 1.0, draw(FEW), draw(FEW), torch.arange(FEW) % 2)


def _of_examples(draw):
    return by_examples(torch.zeros(2048), 1.0, draw(2 * FEW), torch.arange(2 * FEW) % 2)


def _of_uneven_examples(draw):
    return by_examples(torch.zeros(2048), 1.0, draw(100 + FEW), (torch.arange(100 + FEW) < FEW).long())


def _of_groups(draw):
    y, a = torch.arange(200) % 2, torch.arange(200) % 2
    a[: 2 * FEW] = 1 - a[: 2 * FEW]
    return by_groups(draw(200), y, a)


def _of_environments(draw):
    y, environment = torch.arange(8 * FEW) % 2, torch.arange(8 * FEW) // (2 * FEW)
    return by_invariance(Judge.ENVIRONMENTS, draw(8 * FEW), y, environment)


def _of_two_environments(draw):
    y, environment = torch.arange(4 * FEW) % 2, torch.arange(4 * FEW) // (2 * FEW)
    return by_invariance(Judge.ENVIRONMENTS, draw(4 * FEW), y, environment)


JUDGES = (
    _of_pairs,
    _of_examples,
    _of_uneven_examples,
    _of_groups,
    _of_environments,
    _of_two_environments,
)


@pytest.mark.parametrize("kind", ["normal", "seldom"])
@pytest.mark.parametrize("judge", JUDGES)
def test_with_the_fewest_texts_noise_is_as_rarely_called_spurious(judge, kind):
    """Of 20 sets of 2,048 features of nothing 5 % have a discovery at most: 1 in 400 times more than four.

    Normal ones, and such as are silent in most texts and else exponential.
    """
    runs = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)

        def draw(count, generator=generator):
            if kind == "normal":
                return torch.randn(count, 2048, generator=generator)
            strength = -torch.rand(count, 2048, generator=generator).clamp_min(1e-9).log()
            return strength * (torch.rand(count, 2048, generator=generator) < 0.3)

        runs += bool((benjamini_hochberg(judge(draw).p_value) <= RULES.false_discoveries).any())
    assert runs <= 4


def test_with_the_fewest_texts_an_attribute_is_still_found():
    """One feature in twenty changes with it by eight standard deviations, by pairs and by examples."""
    generator = torch.Generator().manual_seed(0)
    a = torch.arange(2 * FEW) % 2
    shift = torch.where(torch.arange(2048) < 100, 8.0, 0.0)
    side = (a.double() - 0.5)[:, None] * shift
    texts, twins = (sign * side + torch.randn(2 * FEW, 2048, generator=generator) for sign in (1, -1))
    for found in (
        by_examples(shift, 1.0, texts, a),
        by_counterfactuals(shift, 1.0, texts[:FEW], twins[:FEW], a[:FEW]),
    ):
        passed = benjamini_hochberg(found.p_value) <= RULES.false_discoveries
        assert int(passed[:100].sum()) >= 99
        assert int(passed[100:].sum()) <= 14  # 5 % of those found, and three standard deviations more


def test_adjusted_values_are_those_of_the_procedure():
    """Benjamini and Hochberg, by hand."""
    p = torch.tensor([0.04, 0.01, 0.5, 0.03], dtype=torch.float64)
    expected = torch.tensor([0.16 / 3, 0.04, 0.5, 0.16 / 3], dtype=torch.float64)
    assert torch.allclose(benjamini_hochberg(p), expected)


def _said(judge, standing, share):
    return JudgeEvidence(
        judge=judge, share=share, attribute_effect=1, label_effect=1, p_value=0.01, standing=standing
    )


def test_judges_that_disagree_leave_it_undecided():
    """Spurious needs one that says so and none that says task; nobody says 0.5."""
    examples = _said(Judge.ATTRIBUTE_EXAMPLES, Standing.SPURIOUS, 0.9)
    task = _said(Judge.COUNTERFACTUALS, Standing.TASK, 0.1)
    doubt = _said(Judge.COUNTERFACTUALS, Standing.UNDECIDED, 0.4)
    assert combined((examples, task))[0] is Standing.UNDECIDED
    assert combined((examples, doubt))[:2] == (Standing.SPURIOUS, 0.9)
    assert combined((task, doubt))[0] is Standing.UNDECIDED
    assert combined((task,))[0] is Standing.TASK
    assert combined(())[:2] == (Standing.UNDECIDED, 0.5)
