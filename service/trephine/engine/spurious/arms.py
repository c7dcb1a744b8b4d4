"""The report's arms: the decision before and after, refitted, and with matched random features gone."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from itertools import compress

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.spurious_arms import Arm, ArmOutcome, BenchScores
from trephine.domain.spurious_heads import ProbeHead
from trephine.domain.spurious_removal import Standing
from trephine.domain.spurious_sizes import CONTROL_TEXTS
from trephine.engine.erasure.logistic import fit_logistic
from trephine.engine.spurious.baselines import measure_baselines
from trephine.engine.spurious.choosing import Choice
from trephine.engine.spurious.controls import matched_features
from trephine.engine.spurious.erasing import erased_head
from trephine.engine.spurious.examples import Example, attributes, labels, sample
from trephine.engine.spurious.heads import LinearHead
from trephine.engine.spurious.judging import Judged
from trephine.engine.spurious.measuring import PROBE_PENALTY, Measure, Pooled
from trephine.engine.spurious.metrics import fresh_probe, scr, tpp
from trephine.engine.spurious.repeats import once
from trephine.engine.spurious.study import Study


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Every arm, and the vectors that the original and what ships were measured on."""

    arms: tuple[ArmOutcome, ...]
    scores: BenchScores
    original: LinearHead
    """What the decision was, trained on as many texts as what ships."""
    test: Sequence[Example]
    held_out: Sequence[Example]
    """As in the ambiguous set."""
    paired: Sequence[Example]
    """Of these, the ones with a twin."""
    plain: Pooled
    after: Pooled
    unmatched: int = 0
    """Removed features that no random one stands for, since too few of their layer are left."""


def measure_arms(study: Study, judged: Judged, choice: Choice) -> Generator[Progress | None, None, Measured]:
    """Measure every arm once the choice is made; the test split is looked at here for the first time."""
    measure, gone = Measure(study), [one.feature for one in choice.removed]
    plain = yield from measure.pooled((), "original")
    original = (yield from _original(study)) if gone else study.head
    arms = [measure.arm(Arm.ORIGINAL, original, plain, study.head)]
    after, unmatched = plain, 0
    if gone:
        after = yield from measure.pooled(gone, "removed")
        arms.append(measure.arm(Arm.REMOVED, original, after, study.head))
        arms += yield from _trained_again(measure, choice, plain, after)
        random, unmatched = yield from _random(measure, judged, choice, original)
        arms += random
    arms += yield from measure_baselines(measure, plain)
    scores = yield from _scores(measure, judged, choice, original, plain, after)
    return Measured(
        arms=tuple(arms),
        scores=scores,
        original=original,
        test=measure.test,
        held_out=measure.held_out,
        paired=measure.paired,
        plain=plain,
        after=after,
        unmatched=unmatched,
    )


def _original(study: Study) -> Generator[Progress | None, None, LinearHead]:
    """Train a probe on what is held out as well: else what ships is better for having seen more texts."""
    trained = study.trains and isinstance(study.command.decision, ProbeHead)
    if not trained or len(study.everything) == len(study.fitted):
        return study.head
    texts = [one.ids for one in study.everything]
    return study.trained((yield from study.pool(texts, (), "original, all texts")), study.everything)


def _trained_again(
    measure: Measure, choice: Choice, plain: Pooled, after: Pooled
) -> Generator[Progress | None, None, list[ArmOutcome]]:
    study = measure.study
    if not study.trains:
        return []
    if not choice.erased:
        return [measure.arm(Arm.REFITTED, choice.head, after, choice.validated)]
    found = [
        measure.arm(Arm.REFITTED, choice.final.plain, after, choice.tried.plain),
        measure.arm(Arm.ERASED, choice.head, after, choice.validated),
    ]
    alone = yield from erased_head(study, (), "erased alone")
    final_alone = yield from erased_head(study, (), "erased alone, final", study.everything)
    if alone is None or final_alone is None:
        return found
    return [*found, measure.arm(Arm.ERASED_ALONE, final_alone, plain, alone)]


def _random(
    measure: Measure, judged: Judged, choice: Choice, original: LinearHead
) -> Generator[Progress | None, None, tuple[list[ArmOutcome], int]]:
    """Measure random sets; return their arms, and how many removed features have no match."""
    study, unmatched = measure.study, 0
    small = Measure(study, sample(measure.test, CONTROL_TEXTS, study.command.seed + 5))
    # What a person keeps may be what was judged spurious: it stands for nothing.
    spurious = [one for one in judged.candidates if one.standing is Standing.SPURIOUS or one.override]
    kept: dict[Arm, list[ArmOutcome]] = {Arm.RANDOM: [], Arm.RANDOM_REFITTED: []}
    for number in range(study.command.budget.random_sets):
        drawn = matched_features(
            study.space, choice.removed, spurious, judged.use, study.command.seed + 100 + number
        )
        unmatched = max(unmatched, len(choice.removed) - len(drawn))
        if not drawn:
            break
        pooled = yield from small.pooled(drawn, f"random {number + 1}")
        kept[Arm.RANDOM].append(small.arm(Arm.RANDOM, original, pooled, study.head))
        if study.trains:
            texts = [one.ids for one in study.everything]
            vectors = yield from study.pool(texts, drawn, f"refit, random {number + 1}")
            head, validated = study.trained_twice(vectors)
            kept[Arm.RANDOM_REFITTED].append(small.arm(Arm.RANDOM_REFITTED, head, pooled, validated))
    return [_mean(arm, found) for arm, found in kept.items() if found], unmatched


def _mean(arm: Arm, outcomes: Sequence[ArmOutcome]) -> ArmOutcome:
    """Average figures over sets; the interval spans those of all sets."""
    figures = []
    for number, figure in enumerate(outcomes[0].figures):
        same = [one.figures[number] for one in outcomes]
        lows, highs = (
            [one.low for one in same if one.low is not None],
            [one.high for one in same if one.high is not None],
        )
        value = sum(one.value for one in same) / len(same)
        figures.append(
            replace(figure, value=value, low=min(lows, default=None), high=max(highs, default=None))
        )
    return ArmOutcome(arm=arm, figures=tuple(figures))


def _scores(
    measure: Measure,
    judged: Judged,
    choice: Choice,
    original: LinearHead,
    plain: Pooled,
    after: Pooled,
) -> Generator[Progress | None, None, BenchScores]:
    if not measure.grouped or not choice.removed:
        return BenchScores(scr=None, tpp=None)
    study, first = measure.study, once([one.ids for one in measure.test])
    y, known = labels(measure.test)[first], attributes(measure.test)[first]
    strata = 2 * y + known
    clean = fresh_probe(plain.test[first], y, strata, penalty=PROBE_PENALTY, seed=study.command.seed)
    if clean is None:
        return BenchScores(scr=None, tpp=None)
    accuracies = [_balanced(original.decide(p.test[first]) == y, strata) for p in (plain, after)]
    found = scr(accuracies[0], _balanced(clean, strata), accuracies[1])
    return BenchScores(scr=found, tpp=(yield from _targeted(measure, judged, choice, plain, after)))


def _balanced(right: Tensor, strata: Tensor) -> float:
    return sum(float(right[strata == s].float().mean()) for s in strata.unique()) / len(strata.unique())


def _targeted(
    measure: Measure, judged: Judged, choice: Choice, plain: Pooled, after: Pooled
) -> Generator[Progress | None, None, float | None]:
    """TPP of the two concepts, attribute and label, each with as many of its own features removed.

    As many as were removed; fewer, the first of them, where fewer are of the task: what more features cost a
    concept is not for being its own.
    """
    study = measure.study
    task = [one for one in judged.candidates if one.standing is Standing.TASK]
    task = sorted(task, key=lambda one: -abs(one.effect))[: len(choice.removed)]
    if not task:
        return None
    own = [one.feature for one in choice.removed[: len(task)]]
    distinct = list(compress(measure.test, once([one.ids for one in measure.test]).tolist()))
    chosen = sample(distinct, CONTROL_TEXTS, study.command.seed + 6)
    number = {id(one): place for place, one in enumerate(measure.test)}
    rows = torch.tensor([number[id(one)] for one in chosen])
    texts = [one.ids for one in chosen]
    without_task = yield from study.pool(texts, [one.feature for one in task], "test, task features removed")
    without_own = after.test[rows]
    if len(own) < len(choice.removed):
        without_own = yield from study.pool(texts, own, "test, as many of the attribute removed")
    states = (plain.test[rows], without_own, without_task)
    classes = (attributes(chosen), labels(chosen))
    strata = 2 * classes[1] + classes[0]
    seen = _half(strata)
    found = [[0.0, 0.0] for _ in states]
    for concept, wanted in enumerate(classes):
        weight, bias = fit_logistic(states[0][seen], wanted[seen], penalty=PROBE_PENALTY)
        for state, pooled in enumerate(states):
            right = ((pooled.double() @ weight + bias) > 0) == (wanted == 1)
            found[state][concept] = _balanced(right[~seen], strata[~seen])
    pairs = [(accuracy[0], accuracy[1]) for accuracy in found]
    return tpp(pairs[0], (pairs[1], pairs[2]))


def _half(strata: Tensor) -> Tensor:
    """Mark every other text of each stratum; each has two."""
    seen = torch.zeros(len(strata), dtype=torch.bool)
    for stratum in strata.unique():
        seen[(strata == stratum).nonzero()[::2, 0]] = True
    return seen
