"""From figures to a word: what is not shown is not claimed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trephine.domain.ablation import UnmatchedFeature
from trephine.domain.edit_evaluation import (
    ArmResult,
    ControlComparison,
    ControlMatching,
    EditVerdict,
    EvaluationArm,
    EvaluationBounds,
    SetResult,
    SetRole,
)
from trephine.domain.findings import Figure
from trephine.domain.sites import FeatureRef
from trephine.engine.edit_evaluation.controls import holm, p_value
from trephine.engine.edit_evaluation.verdict import judge

BOUNDS = EvaluationBounds()
MATCHED = ControlMatching(
    matched=1, unmatched=(), factor=2.0, wrong_layer_factor=2.0, wrong_layers=(), notes=()
)
QUIET = tuple(0.001 * number for number in range(99))
LOUD = tuple(0.1 * number for number in range(99))


def compared(p: float = 0.01, values: tuple[float, ...] = QUIET) -> ControlComparison:
    """A comparison with random features."""
    return ControlComparison(
        arm=EvaluationArm.RANDOM,
        statistic="log_odds_change",
        effect=-2.0,
        values=values,
        p_value=p,
        adjusted_p_value=p,
        units=20,
    )


def measured(role: SetRole, *figures: Figure, controls: tuple[ControlComparison, ...] = ()) -> SetResult:
    """A set under the edit."""
    return SetResult(
        name=role.value,
        role=role,
        units=20,
        tokens=200,
        sha256="",
        arms=(ArmResult(arm=EvaluationArm.EDIT, figures=figures),),
        controls=controls,
    )


def odds(value: float, low: float, high: float) -> Figure:
    """A change of log-odds."""
    return Figure(name="log_odds_change", value=value, low=low, high=high, unit="nats")


def kl(value: float, low: float, high: float) -> Figure:
    """A KL."""
    return Figure(name="kl", value=value, low=low, high=high, unit="nats/token")


EFFECT = measured(SetRole.TARGET, odds(-2.0, -2.4, -1.6), controls=(compared(),))
HARMLESS = measured(SetRole.RETAIN, kl(0.02, 0.01, 0.03))


@pytest.mark.parametrize(
    ("target", "retain", "verdict", "why"),
    [
        (EFFECT, HARMLESS, EditVerdict.SELECTIVE, "p = 0.01 against 99 matched random sets"),
        (
            EFFECT,
            measured(SetRole.RETAIN, kl(0.2, 0.15, 0.25)),
            EditVerdict.DAMAGING,
            "at most 0.1 is allowed",
        ),
        (
            measured(SetRole.TARGET, odds(-0.1, -0.2, 0.0), controls=(compared(),)),
            HARMLESS,
            EditVerdict.INEFFECTIVE,
            "below the 0.5 nats that matter",
        ),
        (
            measured(SetRole.TARGET, odds(-2.0, -2.4, -1.6), controls=(compared(0.5),)),
            HARMLESS,
            EditVerdict.UNSPECIFIC,
            "p = 0.5",
        ),
        (
            measured(SetRole.TARGET, odds(-2.0, -2.4, -1.6), controls=(compared(0.5, LOUD),)),
            HARMLESS,
            EditVerdict.INCONCLUSIVE,
            "random features alone move it by up to",
        ),
        (
            measured(SetRole.TARGET, odds(-1.0, -2.4, 0.4), controls=(compared(),)),
            HARMLESS,
            EditVerdict.INCONCLUSIVE,
            "which holds 0",
        ),
        (
            EFFECT,
            measured(SetRole.RETAIN, kl(0.08, 0.05, 0.12)),
            EditVerdict.INCONCLUSIVE,
            "damage on retain is 0.08",
        ),
        (
            replace(EFFECT, controls=(compared(values=QUIET[:98]),)),
            HARMLESS,
            EditVerdict.INCONCLUSIVE,
            "98 matched random sets for target, and 99 are needed",
        ),
    ],
)
def test_words(target, retain, verdict, why):
    """Each word has its condition; a doubt says what would decide it."""
    found = judge([target, retain], MATCHED, BOUNDS)
    assert found.verdict is verdict
    assert why in found.why
    assert bool(found.would_decide) == (verdict is EditVerdict.INCONCLUSIVE)


def test_a_target_without_a_control_is_not_called_specific():
    """An edit of which a part could not be matched is inconclusive, however small p is."""
    lost = UnmatchedFeature(feature=FeatureRef(layer=1, index=2), candidates=0)
    found = judge([EFFECT, HARMLESS], replace(MATCHED, unmatched=(lost,)), BOUNDS)
    assert found.verdict is EditVerdict.INCONCLUSIVE
    assert "no matched random feature" in found.why


def test_accuracy_on_retain_items_is_bounded_too():
    """A drop of accuracy whose whole interval is above the bound is damage, also at a small KL."""
    change = Figure(name="accuracy_change", value=-0.2, low=-0.3, high=-0.1)
    items = measured(SetRole.RETAIN, kl(0.02, 0.01, 0.03), change)
    assert judge([EFFECT, items], MATCHED, BOUNDS).verdict is EditVerdict.DAMAGING
    wide = replace(change, low=-0.3, high=0.1)
    doubt = judge([EFFECT, measured(SetRole.RETAIN, kl(0.02, 0.01, 0.03), wide)], MATCHED, BOUNDS)
    assert doubt.verdict is EditVerdict.INCONCLUSIVE
    assert "texts or items (now 20)" in doubt.would_decide


def test_what_speaks_against_an_edit_weighs_more_than_doubt():
    """Shown damage is told even where the effect is in doubt."""
    doubtful = measured(SetRole.TARGET, odds(-1.0, -2.4, 0.4), controls=(compared(),))
    damaging = measured(SetRole.RETAIN, kl(0.2, 0.15, 0.25))
    assert judge([doubtful, damaging], MATCHED, BOUNDS).verdict is EditVerdict.DAMAGING


def test_p_values_count_the_edit_itself_and_are_adjusted_by_holm():
    """(1 + #) / (R + 1) by absolute size; step-down, monotone, at most 1."""
    assert p_value(-2.0, (0.1, -2.0, 1.9)) == 2 / 4
    assert p_value(2.0, ()) == 1.0
    adjusted = holm([compared(0.04), compared(0.01), compared(0.03)])
    assert [one.adjusted_p_value for one in adjusted] == pytest.approx([0.06, 0.03, 0.06])
    assert holm([compared(0.9), compared(0.8)])[0].adjusted_p_value == 1.0
