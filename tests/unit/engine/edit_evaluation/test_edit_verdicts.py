"""From figures to a word: what is not shown is not claimed."""

from __future__ import annotations

from dataclasses import replace
from math import inf, isnan, nan

import pytest
import torch

from trephine.domain.ablation import UnmatchedFeature
from trephine.domain.control_counts import reached
from trephine.domain.edit_evaluation import (
    QUANTILES,
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
from trephine.engine.edit_evaluation.controls import adjusted_for_sets, holm, p_value
from trephine.engine.edit_evaluation.verdict import judge

BOUNDS = EvaluationBounds()
MATCHED = ControlMatching(
    matched=1, unmatched=(), factor=2.0, wrong_layer_factor=2.0, wrong_layers=(), notes=()
)
QUIET = tuple(0.001 * number for number in range(1, 100))
LOUD = tuple(0.1 * number for number in range(99))


def compared(
    p: float = 0.01, values: tuple[float, ...] = QUIET, arm: EvaluationArm = EvaluationArm.RANDOM
) -> ControlComparison:
    """A comparison with random features, or with those of another layer."""
    return ControlComparison(
        arm=arm,
        statistic="log_odds_change",
        effect=-2.0,
        values=values,
        p_value=p,
        adjusted_p_value=p,
        units=20,
    )


def beside(effect: float, values: tuple[float, ...]) -> ControlComparison:
    """A comparison with random features, and the p-value that it has."""
    return replace(compared(p_value("log_odds_change", effect, values), values), effect=effect)


def elsewhere(*values: float) -> ControlComparison:
    """A comparison with another layer."""
    p = p_value("log_odds_change", -2.0, values)
    return compared(p, values, EvaluationArm.WRONG_LAYER)


def damaged(effect: float, *values: float, statistic: str = "kl") -> ControlComparison:
    """A comparison of damage with random features."""
    p = p_value(statistic, effect, values)
    return ControlComparison(
        arm=EvaluationArm.RANDOM,
        statistic=statistic,
        effect=effect,
        values=values,
        p_value=p,
        adjusted_p_value=p,
        units=8,
        tokens=256,
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


NOWHERE_ELSE = elsewhere(*QUIET[:19])
AS_OTHERS = damaged(0.02, *(0.001 * number for number in range(99)))
EFFECT = measured(SetRole.TARGET, odds(-2.0, -2.4, -1.6), controls=(compared(), NOWHERE_ELSE))
HARMLESS = measured(SetRole.RETAIN, kl(0.02, 0.01, 0.03), controls=(AS_OTHERS,))


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
            measured(SetRole.TARGET, odds(-0.5, -0.6, -0.4), controls=(beside(-0.05, QUIET),)),
            HARMLESS,
            EditVerdict.UNSPECIFIC,
            "p = 0.51 against 99 matched random sets: 50 do as much",
        ),
        (
            measured(SetRole.TARGET, odds(-0.5, -0.6, -0.4), controls=(beside(-0.093, QUIET),)),
            HARMLESS,
            EditVerdict.INCONCLUSIVE,
            "99 matched random sets: 7 do as much, which are neither few enough nor more than 5% of them",
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
            measured(SetRole.TARGET, odds(-0.55, -0.65, -0.44), controls=(compared(), NOWHERE_ELSE)),
            HARMLESS,
            EditVerdict.INCONCLUSIVE,
            "which may be below the 0.5 nats that matter",
        ),
        (
            measured(SetRole.TARGET, kl(0.02, 0.008, 0.03), controls=(compared(), NOWHERE_ELSE)),
            HARMLESS,
            EditVerdict.INCONCLUSIVE,
            "which may be below the 0.01 nats/token that matter",
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
        (EFFECT, HARMLESS, EditVerdict.SELECTIVE, "0 of 19 sets of another layer do as much"),
        (
            replace(EFFECT, controls=(compared(), elsewhere(*QUIET[:18], 2.0))),
            HARMLESS,
            EditVerdict.INCONCLUSIVE,
            "1 of 19 sets of another layer do as much (p = 0.1): the effect is not shown to be of its layer",
        ),
        (
            replace(EFFECT, controls=(compared(), elsewhere(-2.1))),
            HARMLESS,
            EditVerdict.INCONCLUSIVE,
            "1 of 1 sets of another layer",
        ),
        (
            replace(EFFECT, controls=(compared(), elsewhere(*QUIET, 2.0))),
            HARMLESS,
            EditVerdict.SELECTIVE,
            "1 of 100 sets of another layer do as much",
        ),
        (
            EFFECT,
            HARMLESS,
            EditVerdict.SELECTIVE,
            "damage on retain is 0.02 [0.01, 0.03] nats/token (79 of 99 matched random sets do as much)",
        ),
    ],
)
def test_words(target, retain, verdict, why):
    """Each word has its condition; a doubt says what would decide it."""
    found = judge([target, retain], MATCHED, BOUNDS)
    assert found.verdict is verdict
    assert why in found.why
    assert bool(found.would_decide) == (verdict is EditVerdict.INCONCLUSIVE)


@pytest.mark.parametrize("silent", [0, 74])
def test_more_target_sets_make_no_effect_unspecific(silent):
    """Every set has to pass, so none is adjusted for: of eight sets no control does as much."""
    values = (0.0,) * silent + QUIET[silent:]
    one = replace(EFFECT, controls=(beside(-2.0, values), NOWHERE_ELSE))
    sets = adjusted_for_sets([*(replace(one, name=f"target {n}") for n in range(8)), HARMLESS])
    assert sets[0].controls[0].adjusted_p_value > 0.05
    found = judge(sets, MATCHED, BOUNDS)
    assert found.verdict is EditVerdict.SELECTIVE, found.why
    told = "p = 0.0385 against 25 matched random sets that act" if silent else "p = 0.01 against 99 matched"
    assert found.why.count(told) == 8
    sets[3] = replace(sets[3], controls=(beside(-2.0, (*QUIET[:60], *[2.5] * 39)), NOWHERE_ELSE))
    assert judge(sets, MATCHED, BOUNDS).verdict is EditVerdict.INCONCLUSIVE


def test_few_controls_that_act_ask_for_more():
    """One of 19 that does as much is no finding that random features do."""
    one = replace(EFFECT, controls=(beside(-2.0, (0.0,) * 80 + QUIET[:18] + (2.0,)), NOWHERE_ELSE))
    found = judge([one, HARMLESS], MATCHED, EvaluationBounds(min_log_odds=1.9))
    assert found.verdict is EditVerdict.INCONCLUSIVE
    assert "p = 0.1 against 19 matched random sets that act: 1 do as much" in found.why
    assert found.would_decide.startswith("more control sets (now 19 act on target)")


def test_damage_beyond_that_of_controls_is_told_of_many_sets_as_well():
    """Adjusted, no p-value of 99 controls is 0.05 over six sets; both are told."""
    worse = replace(HARMLESS, controls=(damaged(0.02, *(0.1 * value for value in QUIET)),))
    sets = adjusted_for_sets([EFFECT, *(replace(worse, name=f"retain {n}") for n in range(6))])
    said = judge(sets, MATCHED, BOUNDS).caveats
    assert len(said) == 6
    assert "p = 0.01, or 0.06 if this set is picked out of several" in said[0]


def test_sets_of_another_layer_that_change_nothing_are_none():
    """19 of which 15 are silent are 4, and a caveat says so."""
    one = replace(EFFECT, controls=(compared(), elsewhere(*[0.0] * 15, *QUIET[:4])))
    (said,) = judge([one, HARMLESS], MATCHED, BOUNDS).caveats
    assert "4 sets of another layer stand beside it, and 19 are needed" in said


def test_what_it_would_take_follows_from_the_end_that_is_in_the_way():
    """A lopsided interval narrows on both sides; around a share that nothing changed, faster."""
    doubt = judge([EFFECT, measured(SetRole.RETAIN, kl(0.08, 0.07, 0.12))], MATCHED, BOUNDS)
    assert doubt.would_decide == "about 80 texts or items (now 20)"
    change = Figure(name="accuracy_change", value=0.0, low=-0.126, high=0.126)
    doubt = judge([EFFECT, measured(SetRole.RETAIN, kl(0.02, 0.01, 0.03), change)], MATCHED, BOUNDS)
    assert doubt.would_decide == "about 51 texts or items (now 20)"


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


def test_the_damage_of_controls_is_told_and_changes_no_word():
    """Damage beyond that of matched features is a caveat; damage as theirs is no excuse."""
    worse = replace(HARMLESS, controls=(damaged(0.02, *(0.0001 * number for number in range(99))),))
    found = judge([EFFECT, worse], MATCHED, BOUNDS)
    assert found.verdict is EditVerdict.SELECTIVE
    (said,) = found.caveats
    assert "damage on retain is more than matched random features do: 0.02 beside 0.00049 to 0.00931" in said
    assert "the same 8 texts or items, p = 0.01" in said
    assert judge([EFFECT, HARMLESS], MATCHED, BOUNDS).caveats == ()
    as_bad = measured(SetRole.RETAIN, kl(0.2, 0.15, 0.25), controls=(damaged(0.2, *[0.3] * 99),))
    found = judge([EFFECT, as_bad], MATCHED, BOUNDS)
    assert found.verdict is EditVerdict.DAMAGING
    assert "at most 0.1 is allowed (99 of 99 matched random sets do as much)" in found.why


def test_a_drop_of_accuracy_stands_beside_that_of_controls():
    """And not beside their KL."""
    change = Figure(name="accuracy_change", value=-0.2, low=-0.3, high=-0.1)
    controls = (AS_OTHERS, damaged(-0.2, *[0.0] * 90, *[-0.2] * 9, statistic="accuracy_change"))
    items = measured(SetRole.RETAIN, kl(0.02, 0.01, 0.03), change, controls=controls)
    found = judge([EFFECT, items], MATCHED, BOUNDS)
    assert found.verdict is EditVerdict.DAMAGING
    assert "(9 of 99 matched random sets do as much)" in found.why


def test_controls_that_change_nothing_are_none():
    """Of 99 sets 90 are silent on the texts: 9 that act cannot show a p-value of 0.05, and 30 can."""
    few, some = ((0.0,) * silent + QUIET[: 99 - silent] for silent in (90, 69))
    assert p_value("log_odds_change", -2.0, few) == 1 / 10
    assert p_value("log_odds_change", -2.0, some) == 1 / 31
    assert p_value("log_odds_change", 0.0, some) == 1.0
    found = judge(
        [replace(EFFECT, controls=(compared(1 / 10, few), NOWHERE_ELSE)), HARMLESS], MATCHED, BOUNDS
    )
    assert found.verdict is EditVerdict.INCONCLUSIVE
    assert "90 of 99 matched random sets change nothing on target, and 19 that act are needed" in found.why
    found = judge(
        [replace(EFFECT, controls=(compared(1 / 31, some), NOWHERE_ELSE)), HARMLESS], MATCHED, BOUNDS
    )
    assert found.verdict is EditVerdict.SELECTIVE
    assert any("69 of 99 matched random sets change nothing on target" in one for one in found.caveats)


def test_missing_controls_are_caveats():
    """No other layer beside an effect, and too few random features beside a damage, are told."""
    effect = replace(EFFECT, controls=(compared(), elsewhere(0.1)))
    few = replace(HARMLESS, controls=(damaged(0.02, *QUIET[:98]),))
    for one, have in ((replace(EFFECT, controls=(compared(),)), 0), (effect, 1)):
        found = judge([one, HARMLESS], MATCHED, BOUNDS)
        assert found.verdict is EditVerdict.SELECTIVE
        assert f"{have} sets of another layer stand beside it, and 19 are needed" in found.caveats[0]
    for one, have in ((few, 98), (replace(HARMLESS, controls=()), 0)):
        found = judge([EFFECT, one], MATCHED, BOUNDS)
        assert f"{have} matched random sets stand beside the damage, and 99 are needed" in found.caveats[0]


@pytest.mark.parametrize("broken", [kl(nan, nan, nan), kl(inf, 0.01, inf), kl(0.01, 0.01, nan)])
def test_an_edit_under_which_answers_overflow_is_not_selective(broken):
    """On retain sets it is damage beyond any bound; on targets alone no effect can be read."""
    target = replace(EFFECT, arms=(ArmResult(arm=EvaluationArm.EDIT, figures=(broken,)),))
    retain = measured(SetRole.RETAIN, broken, controls=(AS_OTHERS,))
    for sets in ([EFFECT, retain], [target, retain]):
        found = judge(sets, MATCHED, BOUNDS)
        assert (found.verdict, found.would_decide) == (EditVerdict.DAMAGING, "")
        assert found.why == "answers overflow on retain (kl), which no bound allows"
    found = judge([target, HARMLESS], MATCHED, BOUNDS)
    assert found.verdict is EditVerdict.INCONCLUSIVE
    assert found.why == "answers overflow on target (kl), so that no effect can be read"
    assert "weaker" in found.would_decide


def test_a_figure_that_no_bound_is_on_may_not_overflow_either():
    """A perplexity that is no number says as much as a KL that is none."""
    broken = Figure(name="perplexity_ratio", value=inf, low=inf, high=inf)
    found = judge([EFFECT, measured(SetRole.RETAIN, kl(0.02, 0.01, 0.03), broken)], MATCHED, BOUNDS)
    assert found.verdict is EditVerdict.DAMAGING
    assert "answers overflow on retain (perplexity_ratio)" in found.why


def test_a_model_that_overflows_unedited_does_not_damn_the_edit():
    """The no-op has the same figures: nothing is known."""
    arms = tuple(
        ArmResult(arm=kind, figures=(kl(nan, nan, nan),))
        for kind in (EvaluationArm.EDIT, EvaluationArm.NO_OP)
    )
    found = judge([EFFECT, replace(HARMLESS, arms=arms)], MATCHED, BOUNDS)
    assert found.verdict is EditVerdict.INCONCLUSIVE
    assert "do so without the edit as well" in found.why
    assert "wider type" in found.would_decide


def test_what_is_no_number_counts_against_the_edit():
    """The edit's own is not seen to do more than any control, and a control's no less than the edit."""
    for statistic in ("kl", "log_odds_change", "top1_agreement"):
        assert reached(statistic, nan, (0.1, nan)) == 2
        assert p_value(statistic, nan, QUIET) == 1.0
    assert reached("kl", 0.2, (0.1, 0.3, nan, inf)) == 3
    assert reached("top1_agreement", 0.2, (0.1, 0.3, nan)) == 2
    one = compared(values=(nan, 0.5, inf))
    assert one.finite_values == (0.5,)
    assert one.quantiles == (0.5, 0.5, 0.5)
    assert len(none := compared(values=(nan,)).quantiles) == len(QUANTILES)
    assert all(map(isnan, none))


def test_controls_that_overflow_are_none_of_those_that_are_needed():
    """99 of which one is no number are 98; 99 beside one that is none are told, and enough."""
    few = replace(EFFECT, controls=(compared(values=(*QUIET[1:], nan)), NOWHERE_ELSE))
    found = judge([few, HARMLESS], MATCHED, BOUNDS)
    assert found.verdict is EditVerdict.INCONCLUSIVE
    assert "98 matched random sets for target, and 99 are needed" in found.why
    enough = replace(EFFECT, controls=(compared(0.02, (*QUIET, nan)), elsewhere(*QUIET[:18], nan)))
    found = judge([enough, HARMLESS], MATCHED, BOUNDS)
    assert "1 of 19 sets of another layer do as much (p = 0.1)" in found.why
    assert "1 of 100 matched random sets overflow on target" in found.caveats[0]
    assert "1 of 19 wrong-layer sets overflow on target" in found.caveats[1]
    assert "18 sets of another layer stand beside it" in found.caveats[2]
    loud = replace(EFFECT, controls=(compared(0.5, (*LOUD, nan)),))
    found = judge([loud, HARMLESS], MATCHED, BOUNDS)
    assert "random features alone move it by up to 9.31" in found.why


def test_what_speaks_against_an_edit_weighs_more_than_doubt():
    """Shown damage is told even where the effect is in doubt."""
    doubtful = measured(SetRole.TARGET, odds(-1.0, -2.4, 0.4), controls=(compared(),))
    damaging = measured(SetRole.RETAIN, kl(0.2, 0.15, 0.25))
    assert judge([doubtful, damaging], MATCHED, BOUNDS).verdict is EditVerdict.DAMAGING


def test_p_values_count_the_edit_itself_and_are_adjusted_by_holm():
    """(1 + #) / (R + 1), effects by their size, damages to the worse side; step-down, monotone, at most 1."""
    assert p_value("log_odds_change", -2.0, (0.1, -2.0, 1.9, 2.5)) == 3 / 5
    assert p_value("log_odds_change", 2.0, ()) == 1.0
    assert p_value("kl", 0.2, (0.1, 0.2, 0.3)) == 3 / 4
    assert p_value("perplexity_ratio", 1.1, (0.9, 1.2)) == 2 / 3
    assert p_value("top1_agreement", 0.9, (0.8, 0.9, 0.95)) == 3 / 4
    assert p_value("accuracy_change", -0.1, (-0.2, 0.0, 0.2)) == 2 / 4
    adjusted = holm([compared(0.04), compared(0.01), compared(0.03)])
    assert [one.adjusted_p_value for one in adjusted] == pytest.approx([0.06, 0.03, 0.06])
    assert holm([compared(0.9), compared(0.8)])[0].adjusted_p_value == 1.0


def test_damage_is_adjusted_for_the_retain_sets_alone():
    """Each figure and each kind of controls is a family of its own; target sets are another."""
    agreement = replace(AS_OTHERS, statistic="top1_agreement")
    first = replace(HARMLESS, controls=(replace(AS_OTHERS, p_value=0.02), replace(agreement, p_value=0.01)))
    second = replace(first, controls=(replace(AS_OTHERS, p_value=0.5), replace(agreement, p_value=0.4)))
    found = adjusted_for_sets([EFFECT, first, second])
    assert [c.adjusted_p_value for one in found[1:] for c in one.controls] == [0.04, 0.02, 0.5, 0.4]
    assert [c.adjusted_p_value for c in found[0].controls] == [c.p_value for c in EFFECT.controls]


def test_the_range_of_controls_is_told_by_quantiles():
    """Linear between neighbours, as torch has them; one control has one value."""
    values = tuple(torch.randn(99, generator=torch.Generator().manual_seed(0)).tolist())
    expected = torch.tensor(values, dtype=torch.float64).quantile(torch.tensor(QUANTILES).double())
    assert compared(values=values).quantiles == pytest.approx(expected.tolist())
    assert compared(values=(0.5,)).quantiles == (0.5, 0.5, 0.5)
