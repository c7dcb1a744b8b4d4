"""What every arm is measured on, and the figures that it comes to."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import compress

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.findings import Figure
from trephine.domain.sites import FeatureRef
from trephine.domain.spurious_arms import Arm, ArmOutcome
from trephine.engine.spurious.choosing import ambiguous
from trephine.engine.spurious.examples import Example, attributes, in_groups, labels, sample
from trephine.engine.spurious.heads import LinearHead
from trephine.engine.spurious.metrics import accuracy_figure, decision_figures, fresh_probe, pair_figures
from trephine.engine.spurious.pairs import partners
from trephine.engine.spurious.pooling import Ids
from trephine.engine.spurious.repeats import once
from trephine.engine.spurious.study import Study

PROBE_PENALTY = 1e-2
"""Of fresh probes, on standardised inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    """Vectors of one state of the model."""

    test: Tensor
    held_out: Tensor
    twins: Tensor
    """Of the held-out texts that have one."""

    def changed(self, change: Callable[[Tensor], Tensor]) -> Pooled:
        """Return what a map of vectors `(n, d_model)` makes of them."""
        return Pooled(test=change(self.test), held_out=change(self.held_out), twins=change(self.twins))


class Measure:
    """Measures arms on one set of texts."""

    def __init__(self, study: Study, test: Sequence[Example] | None = None) -> None:
        data, budget = study.data, study.command.budget
        self.study = study
        test = data.test if test is None else test
        self.test = in_groups(test) or test
        """Those alone whose attribute is known, where these are of all groups: no figure is of others."""
        usual = [
            one for one, kept in zip(data.held_out, ambiguous(data.held_out).tolist(), strict=True) if kept
        ]
        self.held_out = sample(usual, budget.effect_texts, study.command.seed + 4)
        self.held_out = tuple(compress(self.held_out, once([one.ids for one in self.held_out]).tolist()))
        self.paired = [one for one in self.held_out if one.twin is not None]

    def pooled(
        self, removed: Sequence[FeatureRef], stage: str, edit: Callable[[Ids], Ids] = tuple
    ) -> Generator[Progress | None, None, Pooled]:
        """Pool everything that an arm needs, with features removed, or with every text edited."""
        pool = self.study.pool
        test, held_out = ([edit(one.ids) for one in texts] for texts in (self.test, self.held_out))
        twins = [edit(one.twin or one.ids) for one in self.paired]
        return Pooled(
            test=(yield from pool(test, removed, f"test, {stage}")),
            held_out=(yield from pool(held_out, removed, f"held out, {stage}")),
            twins=(yield from pool(twins, removed, f"twins, {stage}")),
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
            names, first = (data.labels, data.attributes), once([one.ids for one in self.test])
            decided = head.decide(pooled.test)
            figures += decision_figures(decided[first], y[first], known[first], names, **common)
            if len(pairs := partners(self.test)):
                figures += pair_figures(head.margin(pooled.test), pairs, known, **common)
            figures += self._probe(pooled.test[first], y[first], known[first])
        return ArmOutcome(arm=arm, figures=tuple(figures))

    def _probe(self, pooled: Tensor, y: Tensor, known: Tensor) -> list[Figure]:
        if not self.grouped:
            return []
        command, strata = self.study.command, 2 * y + known
        right = fresh_probe(pooled, known, strata, penalty=PROBE_PENALTY, seed=command.seed)
        if right is None:
            return []
        return [
            accuracy_figure("attribute_probe", right, strata, resamples=command.resamples, seed=command.seed)
        ]

    @property
    def grouped(self) -> bool:
        """True if the test split has all four groups."""
        return bool(in_groups(self.test))
