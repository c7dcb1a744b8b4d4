"""The report's arms: the decision before and after, refitted, and with matched random features gone."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.findings import Figure
from trephine.domain.sites import FeatureRef
from trephine.domain.spurious_removal import Arm, ArmOutcome, BenchScores, Standing
from trephine.engine.spurious.choosing import Choice, ambiguous
from trephine.engine.spurious.controls import matched_features
from trephine.engine.spurious.erasing import erased_head
from trephine.engine.spurious.examples import UNKNOWN, Example, attributes, labels, sample
from trephine.engine.spurious.heads import LinearHead
from trephine.engine.spurious.judging import Judged
from trephine.engine.spurious.logistic import fit_logistic
from trephine.engine.spurious.metrics import (
    accuracy_figure,
    decision_figures,
    fresh_probe,
    pair_figures,
    scr,
    tpp,
)
from trephine.engine.spurious.pairs import partners
from trephine.engine.spurious.study import Study

_CONTROL_TEXTS = 512
"""Test texts that random features and TPP are measured on."""
_PENALTY = 1e-2
"""Of fresh probes, on standardised inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    """Vectors of one state of the model."""

    test: Tensor
    held_out: Tensor
    twins: Tensor
    """Of the held-out texts that have one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Every arm, and the vectors that the original and what ships were measured on."""

    arms: tuple[ArmOutcome, ...]
    scores: BenchScores
    test: Sequence[Example]
    held_out: Sequence[Example]
    """As in the ambiguous set."""
    paired: Sequence[Example]
    """Of these, the ones with a twin."""
    plain: Pooled
    after: Pooled


def measure_arms(study: Study, judged: Judged, choice: Choice) -> Generator[Progress | None, None, Measured]:
    """Measure every arm once the choice is made; the test split is looked at here for the first time."""
    measure, gone = _Measure(study), [one.feature for one in choice.removed]
    plain = yield from measure.pooled((), "original")
    arms = [measure.arm(Arm.ORIGINAL, study.head, plain)]
    after = plain
    if gone:
        after = yield from measure.pooled(gone, "removed")
        arms.append(measure.arm(Arm.REMOVED, study.head, after))
        arms += yield from _trained_again(measure, choice, plain, after)
        arms += yield from _random(measure, judged, choice)
    scores = yield from _scores(measure, judged, choice, plain, after)
    return Measured(
        arms=tuple(arms),
        scores=scores,
        test=measure.test,
        held_out=measure.held_out,
        paired=measure.paired,
        plain=plain,
        after=after,
    )


def _trained_again(
    measure: _Measure, choice: Choice, plain: Pooled, after: Pooled
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


class _Measure:
    """Measures arms on one set of texts."""

    def __init__(self, study: Study, test: Sequence[Example] | None = None) -> None:
        data, budget = study.data, study.command.budget
        self.study = study
        self.test = data.test if test is None else test
        usual = [
            one for one, kept in zip(data.held_out, ambiguous(data.held_out).tolist(), strict=True) if kept
        ]
        self.held_out = sample(usual, budget.effect_texts, study.command.seed + 4)
        self.paired = [one for one in self.held_out if one.twin is not None]

    def pooled(self, removed: Sequence[FeatureRef], stage: str) -> Generator[Progress | None, None, Pooled]:
        """Pool everything that an arm needs."""
        pool = self.study.pool
        return Pooled(
            test=(yield from pool([one.ids for one in self.test], removed, f"test, {stage}")),
            held_out=(yield from pool([one.ids for one in self.held_out], removed, f"held out, {stage}")),
            twins=(yield from pool([one.twin or one.ids for one in self.paired], removed, f"twins, {stage}")),
        )

    def arm(
        self, arm: Arm, head: LinearHead, pooled: Pooled, validated: LinearHead | None = None
    ) -> ArmOutcome:
        """Turn vectors into figures; held-out texts are decided by a head that has not seen them."""
        validated = head if validated is None else validated
        command, data = self.study.command, self.study.data
        common = {"resamples": command.resamples, "seed": command.seed}
        figures: list[Figure] = []
        if self.held_out:
            y = labels(self.held_out)
            right = validated.decide(pooled.held_out) == y
            figures.append(accuracy_figure("ambiguous_accuracy", right, y, **common))
        if self.paired:
            y = labels(self.paired)
            has = torch.tensor([one.twin is not None for one in self.held_out])
            flipped = validated.decide(pooled.held_out[has]) != validated.decide(pooled.twins)
            figures.append(accuracy_figure("flip_rate", flipped, y, **common))
        if self.test:
            y, known = labels(self.test), attributes(self.test)
            names = (data.labels, data.attributes)
            figures += decision_figures(head.decide(pooled.test), y, known, names, **common)
            if len(pairs := partners(self.test)):
                figures += pair_figures(head.margin(pooled.test), pairs, known, **common)
            figures += self._probe(pooled, y, known)
        return ArmOutcome(arm=arm, figures=tuple(figures))

    def _probe(self, pooled: Pooled, y: Tensor, known: Tensor) -> list[Figure]:
        if not self.grouped:
            return []
        command, strata = self.study.command, 2 * y + known
        right = fresh_probe(pooled.test, known, strata, penalty=_PENALTY, seed=command.seed)
        if not len(right):
            return []
        return [
            accuracy_figure("attribute_probe", right, strata, resamples=command.resamples, seed=command.seed)
        ]

    @property
    def grouped(self) -> bool:
        """True if the test split has all four groups."""
        return len({(one.label, one.attribute) for one in self.test if one.attribute != UNKNOWN}) == 4


def _random(
    measure: _Measure, judged: Judged, choice: Choice
) -> Generator[Progress | None, None, list[ArmOutcome]]:
    study = measure.study
    small = _Measure(study, sample(study.data.test, _CONTROL_TEXTS, study.command.seed + 5))
    spurious = [one for one in judged.candidates if one.standing is Standing.SPURIOUS]
    kept: dict[Arm, list[ArmOutcome]] = {Arm.RANDOM: [], Arm.RANDOM_REFITTED: []}
    for number in range(study.command.budget.random_sets):
        drawn = matched_features(
            study.space, choice.removed, spurious, judged.use, study.command.seed + 100 + number
        )
        if not drawn:
            break
        pooled = yield from small.pooled(drawn, f"random {number + 1}")
        kept[Arm.RANDOM].append(small.arm(Arm.RANDOM, study.head, pooled))
        if study.trains:
            head = yield from study.head_with(drawn, f"refit, random {number + 1}")
            kept[Arm.RANDOM_REFITTED].append(small.arm(Arm.RANDOM_REFITTED, head, pooled))
    return [_mean(arm, found) for arm, found in kept.items() if found]


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
    measure: _Measure, judged: Judged, choice: Choice, plain: Pooled, after: Pooled
) -> Generator[Progress | None, None, BenchScores]:
    if not measure.grouped or not choice.removed:
        return BenchScores(scr=None, tpp=None)
    study, y, known = measure.study, labels(measure.test), attributes(measure.test)
    strata = 2 * y + known
    clean = fresh_probe(plain.test, y, strata, penalty=_PENALTY, seed=study.command.seed)
    accuracies = [_balanced(study.head.decide(p.test) == y, strata) for p in (plain, after)]
    found = scr(accuracies[0], _balanced(clean, strata), accuracies[1])
    return BenchScores(scr=found, tpp=(yield from _targeted(measure, judged, choice, plain, after)))


def _balanced(right: Tensor, strata: Tensor) -> float:
    return sum(float(right[strata == s].float().mean()) for s in strata.unique()) / len(strata.unique())


def _targeted(
    measure: _Measure, judged: Judged, choice: Choice, plain: Pooled, after: Pooled
) -> Generator[Progress | None, None, float | None]:
    """TPP of the two concepts, attribute and label, each with as many of its own features removed."""
    study = measure.study
    task = [one for one in judged.candidates if one.standing is Standing.TASK]
    task = sorted(task, key=lambda one: -abs(one.effect))[: len(choice.removed)]
    if not task:
        return None
    chosen = sample(measure.test, _CONTROL_TEXTS, study.command.seed + 6)
    number = {id(one): place for place, one in enumerate(measure.test)}
    rows = torch.tensor([number[id(one)] for one in chosen])
    texts = [one.ids for one in chosen]
    without_task = yield from study.pool(texts, [one.feature for one in task], "test, task features removed")
    states = (plain.test[rows], after.test[rows], without_task)
    classes = (attributes(chosen), labels(chosen))
    strata = 2 * classes[1] + classes[0]
    seen = _half(strata)
    found = [[0.0, 0.0] for _ in states]
    for concept, wanted in enumerate(classes):
        weight, bias = fit_logistic(states[0][seen], wanted[seen], penalty=_PENALTY)
        for state, pooled in enumerate(states):
            right = ((pooled.double() @ weight + bias) > 0) == (wanted == 1)
            found[state][concept] = _balanced(right[~seen], strata[~seen])
    pairs = [(accuracy[0], accuracy[1]) for accuracy in found]
    return tpp(pairs[0], (pairs[1], pairs[2]))


def _half(strata: Tensor) -> Tensor:
    """Mark every other text of each stratum."""
    seen = torch.zeros(len(strata), dtype=torch.bool)
    for stratum in strata.unique():
        seen[(strata == stratum).nonzero()[::2, 0]] = True
    return seen
