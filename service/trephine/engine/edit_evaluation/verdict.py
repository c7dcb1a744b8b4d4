"""From figures to a word: doubt is INCONCLUSIVE, and says what would decide.

What overflows is no figure: the edit is not called selective where one of its own is no number, and a control
of which one is none speaks against it.

An effect must be larger than that of matched random features of its layer, and than that of the same
operation at another layer: what both have is no finding about this feature. Damage is held against bounds
that were fixed before; what controls damage is told beside it, in the reason or as a caveat, and changes no
word: a small damage stays small if random features do less of it, and a large one large if they do as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, exp, inf, isfinite, lgamma, log

import torch

from trephine.domain.control_counts import acting
from trephine.domain.edit_evaluation import (
    FEWEST_ACTING,
    FEWEST_CONTROLS,
    FEWEST_ELSEWHERE,
    ControlComparison,
    ControlMatching,
    EditVerdict,
    EvaluationArm,
    EvaluationBounds,
    SetResult,
    SetRole,
)
from trephine.domain.findings import Figure

_LEVEL = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A word, the reason in a sentence, and what would decide where nothing is decided."""

    verdict: EditVerdict
    why: str
    would_decide: str = ""
    caveats: tuple[str, ...] = ()
    """What the controls leave open, or say beside the word."""


def judge(sets: Sequence[SetResult], matching: ControlMatching, bounds: EvaluationBounds) -> Judgement:
    """Judge every set. Shown damage weighs most, then what speaks against the effect, then any doubt."""
    caveats = tuple(told for one in sets for told in _caveats(one))
    return replace(_judged(sets, matching, bounds), caveats=caveats)


def _judged(sets: Sequence[SetResult], matching: ControlMatching, bounds: EvaluationBounds) -> Judgement:
    damages = [judge_damage(one, bounds) for one in sets if one.role is SetRole.RETAIN]
    effects = [judge_effect(one, matching, bounds) for one in sets if one.role is SetRole.TARGET]
    for one in (*damages, *effects):
        if one.verdict in (EditVerdict.DAMAGING, EditVerdict.INEFFECTIVE, EditVerdict.UNSPECIFIC):
            return one
    doubts = [one for one in (*effects, *damages) if one.verdict is EditVerdict.INCONCLUSIVE]
    return Judgement(
        verdict=EditVerdict.INCONCLUSIVE if doubts else EditVerdict.SELECTIVE,
        why="; ".join(one.why for one in doubts or (*effects, *damages)),
        would_decide="; ".join(dict.fromkeys(one.would_decide for one in doubts)),
    )


def judge_effect(one: SetResult, matching: ControlMatching, bounds: EvaluationBounds) -> Judgement:
    """Judge the effect on one target set, by p-values that are not adjusted for there being several.

    Every target set has to pass, so that more sets make it no easier to (Berger 1982). Adjusted, the smallest
    p-value of 99 controls is above 0.05 from six sets on, whatever the edit does.
    """
    overflow = _overflow(one)
    if overflow is not None:
        return overflow
    figure, least = _effect(one, bounds)
    told = f"{figure.name} on {one.name} is {_interval(figure)}"
    if max(abs(_low(figure)), abs(_high(figure))) < least:
        return Judgement(
            verdict=EditVerdict.INEFFECTIVE, why=f"{told}, below the {least:g} {figure.unit} that matter"
        )
    random = _compared(one, EvaluationArm.RANDOM)
    if random is None or len(random.finite_values) < FEWEST_CONTROLS or matching.unmatched:
        return _uncontrolled(one, random, matching)
    if len(random.values) - random.silent < FEWEST_ACTING:
        return _silent(one, random)
    if random.p_value > _LEVEL:
        return _unshown(one, random, least, told)
    if _low(figure) <= 0 <= _high(figure):
        return _undecided(f"{told}, which holds 0", figure, 0.0, one.units)
    if min(abs(_low(figure)), abs(_high(figure))) < least:
        some = f"{told}, which may be below the {least:g} {figure.unit} that matter"
        return _undecided(some, figure, least if figure.value > 0 else -least, one.units)
    told = f"{told}, {_against(random)}"
    elsewhere = _compared(one, EvaluationArm.WRONG_LAYER)
    if elsewhere is None:
        return Judgement(verdict=EditVerdict.SELECTIVE, why=told)
    if elsewhere.reached and elsewhere.p_value > _LEVEL:
        return _elsewhere_too(one, elsewhere, told)
    return Judgement(
        verdict=EditVerdict.SELECTIVE,
        why=f"{told}; {elsewhere.reached} of {len(elsewhere.values)} sets of another layer do as much",
    )


def judge_damage(one: SetResult, bounds: EvaluationBounds) -> Judgement:
    """Judge the damage on one retain set: KL, and the drop of accuracy where there are items."""
    overflow = _overflow(one)
    if overflow is not None:
        return overflow
    worst: Judgement | None = None
    for name, statistic, figure, limit in _damages(one, bounds):
        told = f"{name} on {one.name} is {_interval(figure)}, at most {limit:g} is allowed"
        told += _beside(one, statistic)
        if _low(figure) > limit:
            return Judgement(verdict=EditVerdict.DAMAGING, why=told)
        if _high(figure) > limit:
            worst = _undecided(told, figure, limit, one.units)
    if worst is not None:
        return worst
    told = f"damage on {one.name} is {_interval(_figure(one, 'kl'))}{_beside(one, 'kl')}"
    return Judgement(verdict=EditVerdict.SELECTIVE, why=told)


def _overflow(one: SetResult) -> Judgement | None:
    """Judge an edit under which a figure is no number: damage on a retain set, and on a target no effect.

    If the no-op has such a figure as well, it is the model's own answers that overflow.
    """
    names = _not_finite(one, EvaluationArm.EDIT)
    if not names:
        return None
    told = f"answers overflow on {one.name} ({', '.join(names)})"
    if _not_finite(one, EvaluationArm.NO_OP):
        return Judgement(
            verdict=EditVerdict.INCONCLUSIVE,
            why=f"{told}, and do so without the edit as well",
            would_decide=f"the model loaded in a wider type, or another set than {one.name}",
        )
    if one.role is SetRole.RETAIN:
        return Judgement(verdict=EditVerdict.DAMAGING, why=f"{told}, which no bound allows")
    return Judgement(
        verdict=EditVerdict.INCONCLUSIVE,
        why=f"{told}, so that no effect can be read",
        would_decide="an edit that is weaker, or the model loaded in a wider type",
    )


def _not_finite(one: SetResult, kind: EvaluationArm) -> list[str]:
    """Name the figures of an arm that are no finite numbers, ends of intervals included."""
    arm = one.arm(kind)
    return [
        figure.name
        for figure in (arm.figures if arm else ())
        if not all(map(isfinite, (figure.value, _low(figure), _high(figure))))
    ]


def _beside(one: SetResult, statistic: str) -> str:
    """Say how many random features damage a retain set as much, on the units that both were run on."""
    random = _compared(one, EvaluationArm.RANDOM, statistic)
    if random is None:
        return ""
    return f" ({random.reached} of {len(random.values)} matched random sets do as much)"


def _caveats(one: SetResult) -> list[str]:
    """Say what the controls of a set are too few for, and where damage is more than matched features do."""
    random = _compared(one, EvaluationArm.RANDOM)
    elsewhere = _compared(one, EvaluationArm.WRONG_LAYER)
    found: list[str] = []
    for controls, kind in ((random, "matched random"), (elsewhere, "wrong-layer")):
        lost = 0 if controls is None else len(controls.values) - len(controls.finite_values)
        if controls is not None and lost:
            found.append(
                f"{lost} of {len(controls.values)} {kind} sets overflow on {one.name}; they count as doing "
                "as much as the edit, and are not among the sets that are needed"
            )
    if one.role is SetRole.TARGET and random is not None and random.silent:
        found.append(
            f"{random.silent} of {len(random.values)} matched random sets change nothing on {one.name}: the "
            "p-value is beside the others"
        )
    if one.role is SetRole.TARGET and random is not None:
        have = 0 if elsewhere is None else len(acting(elsewhere.statistic, elsewhere.finite_values))
        if have < FEWEST_ELSEWHERE:
            found.append(
                f"whether other layers have the effect on {one.name} is hardly tested: {have} sets of "
                f"another layer stand beside it, and {FEWEST_ELSEWHERE} are needed"
            )
    if one.role is SetRole.RETAIN:
        have = 0 if random is None else len(random.finite_values)
        if random is None or have < FEWEST_CONTROLS:
            found.append(
                f"whether other features damage {one.name} as much is not tested: {have} matched random sets "
                f"stand beside the damage, and {FEWEST_CONTROLS} are needed"
            )
        elif random.p_value <= _LEVEL:
            found.append(
                f"damage on {one.name} is more than matched random features do: {random.effect:.3g} beside "
                f"{random.quantiles[0]:.3g} to {random.quantiles[-1]:.3g} (5 % to 95 % of them) on the same "
                f"{random.units} texts or items, {_p_of_several(random)}"
            )
    return found


def _compared(one: SetResult, arm: EvaluationArm, damage: str = "kl") -> ControlComparison | None:
    """Return the comparison with one kind of controls: of the effect, or of one figure of the damage."""
    effect = one.role is SetRole.TARGET
    return next((c for c in one.controls if c.arm is arm and (effect or c.statistic == damage)), None)


def _damages(one: SetResult, bounds: EvaluationBounds) -> list[tuple[str, str, Figure, float]]:
    """List damages by their name in a sentence and as a statistic, with the most that is allowed."""
    found = [("damage", "kl", _figure(one, "kl"), bounds.max_retain_kl)]
    arm = one.arm(EvaluationArm.EDIT)
    changes = [f for f in (arm.figures if arm else ()) if f.name == "accuracy_change"]
    for change in changes:
        drop = Figure(name="accuracy_drop", value=-change.value, low=-_high(change), high=-_low(change))
        found.append(("the drop of accuracy", "accuracy_change", drop, bounds.max_accuracy_drop))
    return found


def _uncontrolled(one: SetResult, random: ControlComparison | None, matching: ControlMatching) -> Judgement:
    have = 0 if random is None else len(random.finite_values)
    if matching.unmatched:
        why = f"{len(matching.unmatched)} of the edit's targets have no matched random feature"
    else:
        why = f"there are {have} matched random sets for {one.name}, and {FEWEST_CONTROLS} are needed"
    return Judgement(
        verdict=EditVerdict.INCONCLUSIVE,
        why=why,
        would_decide="a wider matching factor, more control sets, or an edit on features that are used",
    )


def _silent(one: SetResult, random: ControlComparison) -> Judgement:
    """Controls that change nothing are none: too few are left for a p-value of 0.05."""
    return Judgement(
        verdict=EditVerdict.INCONCLUSIVE,
        why=(
            f"{random.silent} of {len(random.values)} matched random sets change nothing on {one.name}, and "
            f"{FEWEST_ACTING} that act are needed"
        ),
        would_decide=f"more texts than {one.units} in {one.name}, on which more features are active",
    )


def _unshown(one: SetResult, random: ControlComparison, least: float, told: str) -> Judgement:
    """Random features may do as much: is that a finding, or a test without power?"""
    told = f"{told}, {_against(random)}: {random.reached} do as much"
    if not _surely_above_level(random.reached, random.beside):
        return Judgement(
            verdict=EditVerdict.INCONCLUSIVE,
            why=f"{told}, which are neither few enough nor more than {_LEVEL:.0%} of them for sure",
            would_decide=(
                f"more control sets (now {random.beside} act on {one.name}), or more of its texts or items "
                f"with controls (now {random.units})"
            ),
        )
    sizes = torch.tensor(
        [abs(value) for value in acting(random.statistic, random.finite_values)], dtype=torch.float64
    )
    detectable = float(sizes.quantile(1 - _LEVEL)) if len(sizes) else inf
    if detectable <= least:
        return Judgement(verdict=EditVerdict.UNSPECIFIC, why=told)
    return Judgement(
        verdict=EditVerdict.INCONCLUSIVE,
        why=f"{told}; random features alone move it by up to {detectable:.3g}",
        would_decide=(
            f"a target set on which matched random features move {random.statistic} by less than {least:g}: "
            f"more of its texts (now {random.units} are run with controls), or narrower ones"
        ),
    )


def _surely_above_level(reached: int, count: int) -> bool:
    """Return if so many are too many to be 5 % by chance: a share of few controls is a coarse one."""

    def chance(n: int) -> float:  # binomial
        ways = lgamma(count + 1) - lgamma(n + 1) - lgamma(count - n + 1)
        return exp(ways + n * log(_LEVEL) + (count - n) * log(1 - _LEVEL))

    return sum(map(chance, range(reached, count + 1))) <= _LEVEL


def _against(random: ControlComparison) -> str:
    """Say p, and beside how many sets it is: those that change nothing are none."""
    act = " that act" if random.beside < len(random.values) else ""
    return f"p = {random.p_value:.3g} against {random.beside} matched random sets{act}"


def _p_of_several(random: ControlComparison) -> str:
    """Say p, and what it is for whoever picks this set out of several."""
    if random.adjusted_p_value == random.p_value:
        return f"p = {random.p_value:.3g}"
    return f"p = {random.p_value:.3g}, or {random.adjusted_p_value:.3g} if this set is picked out of several"


def _elsewhere_too(one: SetResult, elsewhere: ControlComparison, told: str) -> Judgement:
    """Another layer has the effect as well: a doubt, and no finding, since random features here have not.

    It is tested without adjustment: every target set has to pass (Berger 1982).
    """
    return Judgement(
        verdict=EditVerdict.INCONCLUSIVE,
        why=(
            f"{told}, but {elsewhere.reached} of {len(elsewhere.values)} sets of another layer do as "
            f"much (p = {elsewhere.p_value:.3g}): the effect is not shown to be of its layer"
        ),
        would_decide=(
            f"a target set that other layers move less: more texts or items of {one.name} with controls (now "
            f"{elsewhere.units}), narrower ones, or more sets of another layer"
        ),
    )


def _undecided(told: str, figure: Figure, limit: float, units: int) -> Judgement:
    reach = _high(figure) - figure.value if limit > figure.value else figure.value - _low(figure)
    gap = abs(figure.value - limit)
    # An interval narrows with the root of the units; around a share that nothing changed, with the units.
    power = 1 if figure.name == "accuracy_drop" and figure.value == 0 else 2
    needed = ceil(units * (reach / gap) ** power) if gap > 0 else inf
    more = f"about {needed}" if needed < 100 * units else "more than 100 times as many"
    return Judgement(
        verdict=EditVerdict.INCONCLUSIVE, why=told, would_decide=f"{more} texts or items (now {units})"
    )


def _effect(one: SetResult, bounds: EvaluationBounds) -> tuple[Figure, float]:
    arm = one.arm(EvaluationArm.EDIT)
    names = {figure.name for figure in arm.figures} if arm else set()
    if "log_odds_change" in names:
        return _figure(one, "log_odds_change"), bounds.min_log_odds
    return _figure(one, "kl"), bounds.min_kl


def _figure(one: SetResult, name: str) -> Figure:
    arm = one.arm(EvaluationArm.EDIT)
    for figure in arm.figures if arm else ():
        if figure.name == name:
            return figure
    raise ValueError(f"{one.name} was not measured")


def _interval(figure: Figure) -> str:
    unit = f" {figure.unit}" if figure.unit else ""
    return f"{figure.value:.3g} [{_low(figure):.3g}, {_high(figure):.3g}]{unit}"


def _low(figure: Figure) -> float:
    return figure.value if figure.low is None else figure.low


def _high(figure: Figure) -> float:
    return figure.value if figure.high is None else figure.high
