"""How many features go: every count is tried on the validation split, and the best one is taken."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.sites import FeatureRef
from trephine.domain.spurious_heads import ProbeHead, RewardHead
from trephine.domain.spurious_removal import ChoicePoint, Standing
from trephine.engine.spurious.best import best_point
from trephine.engine.spurious.erasing import Heads, heads_on, heads_without
from trephine.engine.spurious.examples import UNKNOWN, Example, attributes, in_groups, labels, sample
from trephine.engine.spurious.heads import LinearHead
from trephine.engine.spurious.information import Paired
from trephine.engine.spurious.judgement import FEWEST, combined
from trephine.engine.spurious.judging import Candidate
from trephine.engine.spurious.metrics import worst_group
from trephine.engine.spurious.study import Study
from trephine.engine.spurious.turns import Turns, decide_by_turns
from trephine.engine.spurious.vectors import Vectors, pool_vectors

TOLERATED = 0.02
"""Ambiguous accuracy that may be lost where nothing else can be measured."""
_PUREST = 0.99
"""Share of the attribute in a feature's effect beyond which the judges' noise tells no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What was tried, and what was taken."""

    points: tuple[ChoicePoint, ...]
    criterion: str
    removed: tuple[Candidate, ...]
    final: Heads
    """Trained on the whole ambiguous set."""
    tried: Heads
    """The same without what was held out, on which they were compared."""
    point: ChoicePoint
    """The one that was taken."""
    why: str
    by_twins: bool = False
    """True if the criterion was measured on texts and their twins."""
    by_groups: bool = False
    """True if it is the worst group of a validation split, or of what is held out for one."""
    by_cost: bool = False
    """True if it is the accuracy that is lost: no held-out text tells the attribute from the label."""

    @property
    def erased(self) -> bool:
        """True if the head was trained without the attribute."""
        return self.point.erased

    @property
    def head(self) -> LinearHead:
        """What ships."""
        return (self.final.erased or self.validated) if self.erased else self.final.plain

    @property
    def validated(self) -> LinearHead:
        """The same without what was held out."""
        return (self.tried.erased if self.erased else None) or self.tried.plain


def in_order(study: Study, candidates: Sequence[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
    """Return what a person wants removed, and what we would remove, in the order in which it goes.

    Largest attribute effect per effect on the task first: a feature that tells both, as one that fires on any
    plural noun does, takes more from the label than a purer one of half its size. A feature that works
    against the attribute is spurious all the same, but taking it away alone makes the decision follow the
    attribute more: without a refit it stays.
    """
    forced = [one for one in candidates if one.override and one.standing is Standing.SPURIOUS]
    ours = _ours_spurious(candidates)
    if not study.trains:
        for one in ours:
            if one.attribute_effect < 0:
                one.why += "; it works against the attribute and stays, as nothing is trained again"
        ours = [one for one in ours if one.attribute_effect > 0]
    return forced, sorted(ours, key=_gain, reverse=True)


def _gain(candidate: Candidate) -> float:
    """Return the attribute effect that goes with a feature, times how much of its effect that is."""
    share = min(candidate.score, _PUREST)
    return abs(candidate.attribute_effect) * share / (1 - share)


def choose(study: Study, candidates: Sequence[Candidate]) -> Generator[Progress | None, None, Choice]:
    """Try every count of the budget, none included, with every head that can be trained."""
    forced, ours = in_order(study, candidates)
    limits = [count for count in study.command.budget.counts if count < len(ours)]
    most = min(len(ours), study.command.budget.counts[-1])
    counts = list(dict.fromkeys([0, *limits, most]))
    scale, points, tried = _Scale(study), list[ChoicePoint](), dict[int, _Attempt]()
    told = list[Paired | None]()
    for number, count in enumerate(counts):
        yield Progress(stage="choosing", done=number, total=len(counts), detail=f"{count} features")
        removed = [one.feature for one in (*forced, *ours[:count])]
        attempt = yield from _try(study, removed, by_turns=scale.by_turns)
        pooled = yield from scale.pooled(removed, attempt.vectors)
        tried[count] = attempt
        for erased, (head, by_turns) in enumerate(attempt.compared):
            if head is not None:
                told.append(by_turns or scale.on_twins(head, pooled))
                point = scale.measure(head, pooled, count, points, told[-1], erased=bool(erased))
                points.append(replace(point, trained=study.trains and bool(removed)))
    best = best_point(points, told)
    taken, erased = (*forced, *ours[: points[best].count]), points[best].erased
    final = yield from _final(study, tried[points[best].count], [one.feature for one in taken], erased)
    return Choice(
        points=tuple(points),
        criterion=scale.words,
        removed=taken,
        final=final,
        tried=tried[points[best].count].heads,
        point=points[best],
        why=_why(points, best, forced, ours, study.part, candidates),
        by_twins=scale.by_twins,
        by_groups=scale.by_groups,
        by_cost=scale.by_cost,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """One number of features."""

    heads: Heads
    """Trained without what is held out."""
    turns: Turns | None = None
    vectors: Vectors | None = None
    """Of all ambiguous texts, where twins are what tells."""

    @property
    def compared(self) -> tuple[tuple[LinearHead | None, Paired | None], ...]:
        """The plain head and the one without the attribute, each with what its like decides by turns."""
        if self.turns is None:
            return (self.heads.plain, None), (self.heads.erased, None)
        without = self.turns.erased
        return (self.heads.plain, self.turns.plain), (None if without is None else self.heads.erased, without)


def _try(
    study: Study, removed: Sequence[FeatureRef], *, by_turns: bool
) -> Generator[Progress | None, None, _Attempt]:
    """Train heads without what is held out; where twins are what tells, decide on all of these by turns."""
    stage = f"refit without {len(removed)}"
    if not by_turns:
        return _Attempt(heads=(yield from heads_without(study, removed, stage)))
    wanted = bool(removed) and study.command.erase
    vectors = yield from pool_vectors(study, removed, stage, study.everything, attribute=True)
    unfitted = not removed and not isinstance(study.command.decision, ProbeHead)
    turns = yield from decide_by_turns(study, vectors, fixed=study.head if unfitted else None, erased=wanted)
    heads = Heads(plain=study.head, erased=None)
    if removed:
        heads = yield from heads_on(study, vectors.only(range(len(study.fitted))), erased=wanted)
    return _Attempt(heads=heads, turns=turns, vectors=vectors)


def _final(
    study: Study, attempt: _Attempt, removed: Sequence[FeatureRef], erased: bool
) -> Generator[Progress | None, None, Heads]:
    """Train once more, on held-out texts too: few texts tell a covariance badly."""
    if removed and attempt.vectors is not None:
        return (yield from heads_on(study, attempt.vectors, erased=erased and study.command.erase))
    return (yield from heads_without(study, removed, "final refit", erased=erased, texts=study.everything))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pooled:
    """Validation vectors with the same features removed."""

    held_out: Tensor
    examples: Tensor
    paired: Tensor
    twins: Tensor


class _Scale:
    """What counts are compared by: the best that the data can tell."""

    def __init__(self, study: Study) -> None:
        budget, data, seed = study.command.budget, study.data, study.command.seed + 4
        self._study = study
        told = () if _too_few(study) else in_groups(data.held_out)
        self._held_out = sample(told or data.held_out, budget.effect_texts, seed)
        self._examples = sample(data.attribute, budget.effect_texts, seed)
        self.by_groups = bool(told)
        settled = self.by_groups or bool(self._examples)
        apart = _twinned(self._held_out) if study.command.validation else []
        self.by_turns = not (settled or apart) and study.trains and bool(_twinned(study.everything))
        """Texts that heads are trained on count as well, each with a head that was trained without it."""
        unseen = apart or _twinned(self._held_out if _trained_on_texts(study) else study.everything)
        self._paired = () if settled or self.by_turns else sample(unseen, budget.effect_texts, seed)
        self.by_twins = self.by_turns or bool(self._paired)
        self.by_cost = not (settled or self.by_twins)
        self.words = self._worded()

    def _worded(self) -> str:
        if self.by_groups:
            data = self._study.data
            few = len(in_groups(data.held_out)) < len(data.held_out)
            known = ", of texts whose attribute is known" if few else ""
            return f"accuracy of the worst group of the {self._study.part}{known}"
        if self._examples:
            return "held-out ambiguous accuracy less how far the decision follows the attribute on examples"
        if self.by_twins:
            how = ", by heads that were trained without them" if self.by_turns else ""
            return f"bits of the label that decisions on texts and on their counterfactual twins tell{how}"
        texts = (*self._study.data.training, *self._study.data.held_out)
        told = any(one.attribute != UNKNOWN for one in texts)
        why = "of all four groups no text is held out" if told else "nothing is known of the attribute"
        return f"as many as cost at most {TOLERATED:.0%} of held-out ambiguous accuracy: {why}"

    def pooled(
        self, removed: Sequence[FeatureRef], everything: Vectors | None
    ) -> Generator[Progress | None, None, _Pooled]:
        """Pool what the criterion needs, with features removed; held-out texts unless they are there."""
        told, paired = () if self.by_groups else self._examples, self._paired
        pool, stage = self._study.pool, f"validation without {len(removed)}"
        if everything is None or self._study.command.validation:
            held_out = yield from pool([one.ids for one in self._held_out], removed, stage)
        else:
            place = {id(one): number for number, one in enumerate(everything.texts)}
            held_out = everything.pooled[[place[id(one)] for one in self._held_out]]
        return _Pooled(
            held_out=held_out,
            examples=(yield from pool([one.ids for one in told], removed, stage)),
            paired=(yield from pool([one.ids for one in paired], removed, stage)),
            twins=(yield from pool([one.twin or one.ids for one in paired], removed, stage)),
        )

    def measure(
        self,
        head: LinearHead,
        pooled: _Pooled,
        count: int,
        before: Sequence[ChoicePoint],
        told: Paired | None,
        *,
        erased: bool,
    ) -> ChoicePoint:
        """Measure one count with one head; where twins are what tells, what it says of them is given."""
        y = labels(self._held_out)
        decided = head.decide(pooled.held_out)
        usual = (decided == y)[ambiguous(self._held_out)]
        accuracy, error = float(usual.float().mean()), _error(usual)
        leak: float | None = None
        if self.by_groups:
            known = attributes(self._held_out)
            criterion, leak = worst_group(decided, y, known), _follows(decided, known)
            error = max(_error((decided == y)[2 * y + known == group]) for group in range(4))
        elif self._examples:
            said, sides = head.decide(pooled.examples), attributes(self._examples)
            leak = _follows(said, sides)
            criterion = accuracy - leak
            error = math.hypot(error, *(_error(said[sides == side] == 1) for side in (0, 1)))
        elif told is not None:
            criterion, error = told.mean(told.information())
            leak = told.flips
        else:
            first = before[0].ambiguous_accuracy if before else accuracy
            criterion = float(count) if accuracy >= first - TOLERATED else -1.0
        return ChoicePoint(
            count=count,
            criterion=criterion,
            error=error,
            ambiguous_accuracy=accuracy,
            leak=leak,
            erased=erased,
        )

    def on_twins(self, head: LinearHead, pooled: _Pooled) -> Paired | None:
        """Return what a head says of texts that it has not seen, and of their twins, if those tell."""
        if not self._paired:
            return None
        texts, twins = (head.margin(one).double() for one in (pooled.paired, pooled.twins))
        return Paired(labels=labels(self._paired), texts=texts, twins=twins)


def _too_few(study: Study) -> bool:
    """True if a group of what is held out has too few texts to choose by, and something else tells more.

    Of one or two texts a group is right by luck, with nothing removed as with anything. A validation split is
    given to choose by, however small.
    """
    held_out = in_groups(study.data.held_out)
    twins = len(_twinned(study.everything)) if study.trains else 0
    if not held_out or study.command.validation or not (study.data.attribute or twins >= FEWEST):
        return False
    return min(Counter((one.label, one.attribute) for one in held_out).values()) < FEWEST


def _twinned(texts: Sequence[Example]) -> list[Example]:
    return [one for one in texts if one.twin is not None]


def _trained_on_texts(study: Study) -> bool:
    """True if the head that was there first was fitted on ambiguous texts, a reward's threshold included."""
    decision = study.command.decision
    own = isinstance(decision, RewardHead) and decision.threshold is None
    return own or isinstance(decision, ProbeHead)


def ambiguous(examples: Sequence[Example]) -> Tensor:
    """Mark texts that are as in the ambiguous set: attribute unknown, or going with the label."""
    return torch.tensor([one.attribute in (UNKNOWN, one.label) for one in examples], dtype=torch.bool)


def _follows(decided: Tensor, known: Tensor) -> float:
    """Return |P(second label | second attribute) - P(second label | first attribute)|."""
    rates = [float(decided[known == side].float().mean()) for side in (0, 1)]
    return abs(rates[1] - rates[0])


def _error(hits: Tensor) -> float:
    """Return the standard error of a share, with one hit and one miss added, so that it is never 0."""
    n = len(hits) + 2
    share = (float(hits.sum()) + 1) / n
    return math.sqrt(share * (1 - share) / n)


def _why(
    points: Sequence[ChoicePoint],
    best: int,
    forced: Sequence[Candidate],
    ours: Sequence[Candidate],
    part: str,
    candidates: Sequence[Candidate] = (),
) -> str:
    by_hand = f", beside {len(forced)} that a person named" if forced else ""
    if not ours:
        return _none_goes(candidates, by_hand)
    stay = len(_ours_spurious(candidates)) - len(ours)
    apart = f" ({stay} more work against the attribute and stay)" if stay > 0 else ""
    first, found = points[0], points[best]
    if found.count == 0 and not found.erased:
        return (
            f"{len(ours)} features were judged spurious{apart}, but no number of them does better on the "
            f"{part} than none (criterion {first.criterion:.3f}){by_hand}"
        )
    beside = ", with a head that has no weight along what was told of the attribute" if found.erased else ""
    gone = f"the first {found.count}" if found.count else "none"
    order = ", by attribute effect per effect on the task" if 0 < found.count < len(ours) else ""
    return (
        f"removing {gone} of {len(ours)} spurious features{apart}{order}{by_hand}{beside} takes the "
        f"criterion from {first.criterion:.3f} to {found.criterion:.3f}"
    )


def _ours_spurious(candidates: Sequence[Candidate]) -> list[Candidate]:
    return [one for one in candidates if one.standing is Standing.SPURIOUS and not one.override]


def _none_goes(candidates: Sequence[Candidate], by_hand: str) -> str:
    """Say why nothing of ours goes; all that was judged spurious may have to stay."""
    spurious = _ours_spurious(candidates)
    if spurious:
        return (
            f"everything that was judged spurious ({len(spurious)}) works against the attribute, and stays, "
            f"as nothing is trained again{by_hand}"
        )
    kept = [one for one in candidates if one.override and one.standing is Standing.TASK]
    kept = [one for one in kept if combined(one.evidence)[0] is Standing.SPURIOUS]
    if kept:
        return f"everything that was judged spurious ({len(kept)}) is kept by a person's word{by_hand}"
    return f"no feature was judged spurious{by_hand}: nothing undecided is removed"
