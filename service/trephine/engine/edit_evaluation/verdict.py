"""From figures to a word: doubt is INCONCLUSIVE, and says what would decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf

import torch

from trephine.domain.edit_evaluation import (
    FEWEST_CONTROLS,
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


def judge(sets: Sequence[SetResult], matching: ControlMatching, bounds: EvaluationBounds) -> Judgement:
    """Judge every set. Shown damage weighs most, then what speaks against the effect, then any doubt."""
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
    """Judge the effect on one target set."""
    figure, least = _effect(one, bounds)
    told = f"{figure.name} on {one.name} is {_interval(figure)}"
    if max(abs(_low(figure)), abs(_high(figure))) < least:
        return Judgement(
            verdict=EditVerdict.INEFFECTIVE, why=f"{told}, below the {least:g} {figure.unit} that matter"
        )
    random = next((c for c in one.controls if c.arm is EvaluationArm.RANDOM), None)
    if random is None or len(random.values) < FEWEST_CONTROLS or matching.unmatched:
        return _uncontrolled(one, random, matching)
    if random.adjusted_p_value > _LEVEL:
        return _unshown(one, random, least, told)
    if _low(figure) <= 0 <= _high(figure):
        return _undecided(f"{told}, which holds 0", figure, 0.0, one.units)
    return Judgement(
        verdict=EditVerdict.SELECTIVE,
        why=f"{told}, p = {random.adjusted_p_value:.3g} against {len(random.values)} matched random sets",
    )


def judge_damage(one: SetResult, bounds: EvaluationBounds) -> Judgement:
    """Judge the damage on one retain set: KL, and the drop of accuracy where there are items."""
    worst: Judgement | None = None
    for name, figure, limit in _damages(one, bounds):
        told = f"{name} on {one.name} is {_interval(figure)}, at most {limit:g} is allowed"
        if _low(figure) > limit:
            return Judgement(verdict=EditVerdict.DAMAGING, why=told)
        if _high(figure) > limit:
            worst = _undecided(told, figure, limit, one.units)
    if worst is not None:
        return worst
    kl = _figure(one, "kl")
    return Judgement(verdict=EditVerdict.SELECTIVE, why=f"damage on {one.name} is {_interval(kl)}")


def _damages(one: SetResult, bounds: EvaluationBounds) -> list[tuple[str, Figure, float]]:
    found = [("damage", _figure(one, "kl"), bounds.max_retain_kl)]
    arm = one.arm(EvaluationArm.EDIT)
    changes = [f for f in (arm.figures if arm else ()) if f.name == "accuracy_change"]
    for change in changes:
        drop = Figure(name="accuracy_drop", value=-change.value, low=-_high(change), high=-_low(change))
        found.append(("the drop of accuracy", drop, bounds.max_accuracy_drop))
    return found


def _uncontrolled(one: SetResult, random: ControlComparison | None, matching: ControlMatching) -> Judgement:
    have = 0 if random is None else len(random.values)
    if matching.unmatched:
        why = f"{len(matching.unmatched)} of the edit's targets have no matched random feature"
    else:
        why = f"there are {have} matched random sets for {one.name}, and {FEWEST_CONTROLS} are needed"
    return Judgement(
        verdict=EditVerdict.INCONCLUSIVE,
        why=why,
        would_decide="a wider matching factor, more control sets, or an edit on features that are used",
    )


def _unshown(one: SetResult, random: ControlComparison, least: float, told: str) -> Judgement:
    """Random features do as much: is that a finding, or a test without power?"""
    sizes = torch.tensor([abs(value) for value in random.values], dtype=torch.float64)
    detectable = float(sizes.quantile(1 - _LEVEL))
    against = f"p = {random.adjusted_p_value:.3g} against {len(random.values)} matched random sets"
    if detectable <= least:
        return Judgement(verdict=EditVerdict.UNSPECIFIC, why=f"{told}, {against}")
    return Judgement(
        verdict=EditVerdict.INCONCLUSIVE,
        why=f"{told}, {against}; random features alone move it by up to {detectable:.3g}",
        would_decide=(
            f"a target set on which matched random features move {random.statistic} by less than {least:g}: "
            f"more of its texts (now {random.units} are run with controls), or narrower ones"
        ),
    )


def _undecided(told: str, figure: Figure, limit: float, units: int) -> Judgement:
    half, gap = (_high(figure) - _low(figure)) / 2, abs(figure.value - limit)
    needed = ceil(units * (half / gap) ** 2) if gap > 0 else inf
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
