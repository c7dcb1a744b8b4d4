"""From effects on the ambiguous set to a standing for every candidate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import compress

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.sites import FeatureRef
from trephine.domain.spurious_heads import ProbeHead
from trephine.domain.spurious_removal import Judge, JudgeEvidence, Standing
from trephine.engine.dataset_circuits.clustering import cluster_contexts
from trephine.engine.erasure.logistic import fit_logistic
from trephine.engine.features.statistics import benjamini_hochberg
from trephine.engine.spurious.drawing import draw_judged
from trephine.engine.spurious.effects import Contributions, feature_of, texts_within
from trephine.engine.spurious.examples import UNKNOWN, Example, attributes, column, labels, sample
from trephine.engine.spurious.judgement import (
    FEWEST,
    Verdicts,
    by_counterfactuals,
    by_examples,
    by_groups,
    by_invariance,
    combined,
    separation,
)
from trephine.engine.spurious.repeats import once, once_edited, once_there
from trephine.engine.spurious.study import Study, counted

Steps = Generator[Progress | None, None, None]
_UNSIGNED = frozenset([Judge.ENVIRONMENTS, Judge.CLUSTERS])
"""They tell by how much a feature's effect varies, and not which way it goes with the attribute."""


@dataclass(slots=True, kw_only=True)
class Candidate:
    """A feature that was judged."""

    feature: FeatureRef
    node: int
    effect: float
    """T: how far it tells the labels apart in the ambiguous set, logits."""
    standing: Standing
    score: float
    why: str
    evidence: tuple[JudgeEvidence, ...]
    attribute_probe: float | None
    exact: float | None = None
    override: str = ""
    removed: bool = False

    @property
    def attribute_effect(self) -> float:
        """The largest of the judges', with its sign; 0 without any.

        Spreads over environments have none: they count where nobody else says anything.
        """
        signed = [one for one in self.evidence if one.judge not in _UNSIGNED]
        return max((one.attribute_effect for one in signed or self.evidence), key=abs, default=0.0)


@dataclass(slots=True, kw_only=True)
class Judged:
    """All candidates, and what matched random features are drawn by."""

    candidates: list[Candidate]
    use: Tensor
    """Mean absolute contribution of every feature, `(n_features,)`."""
    judges: tuple[Judge, ...]
    measured_texts: int


@dataclass(slots=True, kw_only=True)
class _Work:
    study: Study
    measure: Contributions
    ambiguous: tuple[Example, ...]
    nodes: Tensor
    contributions: Tensor
    """`(n_ambiguous, n_candidates)`."""
    confounded: Tensor
    pairing: float
    """How far the attribute goes with the label in `ambiguous`."""
    found: list[Verdicts] = field(default_factory=list)
    probe: Tensor | None = None
    """Part of every candidate in a probe of the attribute, `(n_candidates,)`."""


def judge_features(study: Study) -> Generator[Progress | None, None, Judged]:
    """Rank all features by their part in the decision, and judge the strongest."""
    command, hosted, budget = study.command, study.hosted, study.command.budget
    measure = Contributions(hosted, study.space, study.readout, command.estimator, command.gradient_steps)
    count = texts_within(study.space, budget.effect_texts)
    ambiguous = draw_judged(study.data.training, count, command.seed + 1)
    (everything,) = yield from counted(
        measure.of([one.ids for one in ambiguous], [study.head.direction]), "effects", len(ambiguous)
    )
    yield None
    confounded = separation(everything, labels(ambiguous))
    nodes = _strongest(study, confounded)
    work = _Work(
        study=study,
        measure=measure,
        ambiguous=ambiguous,
        nodes=nodes,
        contributions=everything[:, nodes],
        confounded=confounded[nodes],
        pairing=pairing_of(ambiguous, study.data.training),
    )
    use = everything.abs().mean(0)
    del everything
    yield from _by_examples(work)
    yield from _by_counterfactuals(work)
    yield from _by_groups(work)
    yield from _by_invariance(work)
    return Judged(
        candidates=_candidates(work),
        use=use,
        judges=tuple(verdict.judge for verdict in work.found),
        measured_texts=len(ambiguous),
    )


def pairing_of(drawn: Sequence[Example], training: Sequence[Example]) -> float:
    """Return P(second attribute | second label) less P(second attribute | first label) of texts.

    They are drawn evenly over groups, so that it is less than in the ambiguous set they are drawn from. One
    whose attribute is not known has it as often as others of its label there; 1 where none is known.
    """
    rates = []
    for label in (0, 1):
        known = [one.attribute for one in training if one.label == label and one.attribute != UNKNOWN]
        if not known:
            return 1.0
        usual = sum(known) / len(known)
        sides = [one.attribute for one in drawn if one.label == label]
        rates.append(sum(usual if side == UNKNOWN else side for side in sides) / len(sides))
    return rates[1] - rates[0]


def _strongest(study: Study, confounded: Tensor) -> Tensor:
    """Return the nodes of largest |T|, and those that a person has named; ties by number."""
    order = confounded.abs().sort(descending=True, stable=True).indices
    chosen = order[: study.command.budget.candidates].tolist()
    space = study.space
    for override in study.command.overrides:
        feature = override.feature
        for place, described in enumerate(space.places):
            if (described.owner, described.layer) == (feature.replacement, feature.layer):
                chosen.append(space.offsets[place] + feature.index)
    return torch.tensor(list(dict.fromkeys(chosen)))


def _measured(
    work: _Work, examples: list[Example], stage: str, *, twins: bool = False, probe: Tensor | None = None
) -> Generator[Progress | None, None, list[Tensor]]:
    texts = [one.twin or one.ids if twins else one.ids for one in examples]
    directions = [work.study.head.direction] + ([] if probe is None else [probe])
    return (yield from counted(work.measure.of(texts, directions, work.nodes), stage, len(texts)))


def _by_examples(work: _Work) -> Steps:
    study = work.study
    # Of few texts both sides have what a judge needs.
    count = max(study.command.budget.effect_texts, 2 * FEWEST)
    chosen = sample(study.data.attribute, count, study.command.seed + 2)
    known = attributes(chosen)
    if min(int((known == 0).sum()), int((known == 1).sum())) < FEWEST:
        return
    pooled = yield from study.pool([one.ids for one in chosen], (), "attribute probe")
    probe = _attribute_direction(study, pooled, known)
    of_decision, of_probe = yield from _measured(work, list(chosen), "attribute examples", probe=probe)
    work.probe = separation(of_probe, known)
    work.found.append(by_examples(work.confounded, work.pairing, of_decision, known))


def _attribute_direction(study: Study, pooled: Tensor, known: Tensor) -> Tensor:
    decision = study.command.decision
    penalty = decision.penalty if isinstance(decision, ProbeHead) else ProbeHead().penalty
    weight, _ = fit_logistic(pooled, known, penalty=penalty)
    return weight.float()


def _by_counterfactuals(work: _Work) -> Steps:
    study = work.study
    first = once_edited(work.ambiguous).tolist()
    paired = [number for number, one in enumerate(work.ambiguous) if one.twin is not None and first[number]]
    if len(paired) < FEWEST:
        return
    chosen = [work.ambiguous[number] for number in paired]
    known = attributes(chosen)
    sides = torch.where(known == UNKNOWN, labels(chosen), known)
    probe = None
    if work.probe is None:
        texts = [one.ids for one in chosen] + [one.twin or one.ids for one in chosen]
        pooled = yield from study.pool(texts, (), "attribute probe")
        probe = _attribute_direction(study, pooled, torch.cat([sides, 1 - sides]))
    (twins, *of_probe) = yield from _measured(work, chosen, "counterfactuals", twins=True, probe=probe)
    originals = work.contributions[paired]
    verdicts = by_counterfactuals(work.confounded, work.pairing, originals, twins, sides)
    work.found.append(verdicts)
    if of_probe:
        work.probe = separation(of_probe[0], 1 - sides) if len(sides.unique()) == 2 else None


def _by_groups(work: _Work) -> Steps:
    data, budget = work.study.data, work.study.command.budget
    known = [one for one in (*data.training, *data.held_out) if one.attribute != UNKNOWN]
    known = list(compress(known, once([one.ids for one in known]).tolist()))
    counts = Counter((one.label, one.attribute) for one in known)
    if min(counts[group] for group in ((0, 0), (0, 1), (1, 0), (1, 1))) < FEWEST:
        return
    chosen = list(sample(known, budget.effect_texts, work.study.command.seed + 3))
    (found,) = yield from _measured(work, chosen, "groups")
    work.found.append(by_groups(found, labels(chosen), attributes(chosen)))


def _by_invariance(work: _Work) -> Steps:
    names = dict.fromkeys(one.environment for one in work.ambiguous if one.environment is not None)
    if names:
        numbers = {name: number for number, name in enumerate(names)}
        environment = column(
            work.ambiguous, lambda one: -1 if one.environment is None else numbers[one.environment]
        )
        environment[~once_there(work.ambiguous)] = -1
        verdicts = by_invariance(Judge.ENVIRONMENTS, work.contributions, labels(work.ambiguous), environment)
        work.found += [] if verdicts is None else [verdicts]
    clusters = work.study.command.judging.clusters
    if work.found or clusters < 2:
        return
    y = labels(work.ambiguous)
    centred = work.contributions.clone()
    for label in (0, 1):
        centred[y == label] -= centred[y == label].mean(0)
    groups = yield from cluster_contexts(centred, min(clusters, len(y)), work.study.command.seed)
    assignment = groups.assignment.where(once_there(work.ambiguous), -1)
    verdicts = by_invariance(Judge.CLUSTERS, work.contributions, y, assignment)
    work.found += [] if verdicts is None else [verdicts]


def _candidates(work: _Work) -> list[Candidate]:
    rules = work.study.command.judging
    adjusted = [benjamini_hochberg(verdicts.p_value) for verdicts in work.found]
    found = []
    for place, node in enumerate(work.nodes.tolist()):
        evidence = tuple(
            verdicts.evidence(place, rules, fdr) for verdicts, fdr in zip(work.found, adjusted, strict=True)
        )
        standing, score, why = combined(evidence)
        found.append(
            Candidate(
                feature=feature_of(work.study.space, node),
                node=node,
                effect=float(work.confounded[place]),
                standing=standing,
                score=score,
                why=why,
                evidence=evidence,
                attribute_probe=None if work.probe is None else float(work.probe[place]),
            )
        )
    return found
