"""The prompting baseline: what a prompt costs that does what the edit does, at the very same behaviour.

The behaviour is one number over the target sets: the mean log-odds of the answers, or, of texts, the mean
log-probability per token. A prompt comes as it is, so the edit is matched to it: the strength is sought at
which the edit's behaviour is the prompt's, and the damage of both is compared there, paired by text.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isfinite

import torch

from trephine.domain.commands import Progress
from trephine.domain.edit_evaluation import (
    ArmResult,
    EvaluateEdit,
    EvaluationArm,
    PromptCandidate,
    PromptingOptions,
    PromptingResult,
    SetRole,
)
from trephine.domain.edit_strength import at_strength
from trephine.domain.errors import UnsupportedInterventionError
from trephine.domain.findings import Figure
from trephine.domain.verification import Standing
from trephine.engine.edit_evaluation.controls import subset
from trephine.engine.edit_evaluation.figures import Resamples, arm_figures
from trephine.engine.edit_evaluation.prompts import Prompt, prompts
from trephine.engine.edit_evaluation.reading import Arm, Readings, TextReadings, read_units
from trephine.engine.edit_evaluation.telling import told
from trephine.engine.edit_evaluation.units import UnitSet
from trephine.engine.models.hosted import HostedModel

_STRENGTHS = (0.25, 0.5, 0.75, 1.25, 1.5, 2.0, 3.0, 4.0)
_REFINED, _ROUNDS = 5, 2
"""Strengths tried between two others, and how often."""
_TOLERANCE = 0.1
"""Of the smaller effect of the two: nearer than this, behaviours are called the same."""

Damage = dict[str, tuple[ArmResult, ...]]
"""Arms by name of a retain set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Behaviours:
    plain: float
    arms: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Runs prompts and strengths on the sets of one evaluation."""

    hosted: HostedModel
    command: EvaluateEdit
    options: PromptingOptions
    targets: tuple[UnitSet, ...]
    """As many units as controls are run on."""
    retain: tuple[UnitSet, ...]

    def run(self) -> Generator[Progress, None, tuple[PromptingResult, Damage]]:
        """Compare the edit with the prompt that comes nearest to its behaviour."""
        interventions = self.command.edit.interventions
        own = yield from self._behaviours([Arm(interventions=interventions)], "behaviour of the edit")
        change = own.arms[0] - own.plain
        if not isfinite(change):
            why = "answers overflow under the edit, so that it has no behaviour that a prompt could have"
            return _undecided(own, (), why), {}
        tried = self._prompts(upwards=change >= 0)
        found = yield from self._behaviours_of(tried)
        candidates = tuple(
            PromptCandidate(label=one.label, tokens=one.tokens, behaviour=b)
            for one, b in zip(tried, found, strict=True)
        )
        same_way = [i for i, b in enumerate(found) if (b - own.plain) * change > 0]
        result = _undecided(own, candidates, "no prompt that was tried moves the behaviour the edit's way")
        if not same_way:
            return result, {}
        chosen = min(same_way, key=lambda i: abs(found[i] - own.arms[0]))
        strength = yield from self._matching(own, found[chosen])
        damage, differences = yield from self._damage(tried[chosen], strength)
        return _judged(result, candidates[chosen], strength, differences), damage

    def _prompts(self, *, upwards: bool) -> tuple[Prompt, ...]:
        longest = max(_longest(units) for units in (*self.targets, *self.retain))
        return prompts(
            self.hosted,
            self.targets,
            self.options,
            upwards=upwards,
            longest=longest,
            seed=self.command.seed,
        )

    def _behaviours_of(self, tried: Sequence[Prompt]) -> Generator[Progress, None, tuple[float, ...]]:
        found: list[float] = []
        for prompt in tried:
            behaviours = yield from self._behaviours(
                [prompt.arm(units) for units in self.targets], f"prompt: {prompt.label}", by_set=True
            )
            found += behaviours.arms
        return tuple(found)

    def _behaviours(
        self, arms: Sequence[Arm], stage: str, *, by_set: bool = False
    ) -> Generator[Progress, None, _Behaviours]:
        """Measure the behaviour under arms; `by_set` gives every target set an arm of its own."""
        readings: list[Readings] = []
        for number, units in enumerate(self.targets):
            chosen = [arms[number]] if by_set else arms
            reading = read_units(self.hosted, units.units, chosen)
            readings.append((yield from told(reading, stage, len(units.units))))
        return _behaviours(readings)

    def _matching(self, own: _Behaviours, wanted: float) -> Generator[Progress, None, float | None]:
        """Seek the strength at which the edit's behaviour is `wanted`; None if there is none up to 4."""
        known = {0.0: own.plain, 1.0: own.arms[0]}
        tolerance = _TOLERANCE * min(abs(own.arms[0] - own.plain), abs(wanted - own.plain))
        try:
            known |= yield from self._at_strengths(_STRENGTHS)
            for _ in range(_ROUNDS):
                bracket = _bracket(known, wanted)
                if bracket is None:
                    return None
                inside = torch.linspace(*bracket, _REFINED + 2)[1:-1].tolist()
                known |= yield from self._at_strengths(inside)
        except UnsupportedInterventionError:  # an error term that is dropped has no degrees
            return None
        best = min(known, key=lambda strength: abs(known[strength] - wanted))
        return best if abs(known[best] - wanted) <= tolerance and best > 0 else None

    def _at_strengths(self, strengths: Sequence[float]) -> Generator[Progress, None, dict[float, float]]:
        given = self.command.edit.interventions
        arms = [Arm(interventions=at_strength(given, strength)) for strength in strengths]
        found = yield from self._behaviours(arms, "strength of the edit")
        return dict(zip(strengths, found.arms, strict=True))

    def _damage(
        self, prompt: Prompt, strength: float | None
    ) -> Generator[Progress, None, tuple[Damage, tuple[Figure, ...]]]:
        given = self.command.edit.interventions
        matched = at_strength(given, 1.0 if strength is None else strength)
        arms = [Arm(interventions=matched), prompt.arm(None)]
        damage: Damage = {}
        differences: list[Figure] = []
        for units in self.retain:
            reading = read_units(self.hosted, units.units, arms)
            readings = yield from told(reading, f"damage of the prompt on {units.name}", len(units.units))
            resamples = Resamples.of(
                len(units.units), resamples=self.command.resamples, seed=self.command.seed
            )
            prompted = ArmResult(arm=EvaluationArm.PROMPT, figures=arm_figures(readings, 1, resamples))
            own = ArmResult(arm=EvaluationArm.MATCHED_EDIT, figures=arm_figures(readings, 0, resamples))
            damage[units.name] = (prompted,) if strength is None else (own, prompted)
            differences.append(_difference(units, readings, resamples))
        return damage, tuple(differences)


def _undecided(own: _Behaviours, candidates: tuple[PromptCandidate, ...], why: str) -> PromptingResult:
    return PromptingResult(
        candidates=candidates,
        chosen="",
        plain_behaviour=own.plain,
        edit_behaviour=own.arms[0],
        strength=None,
        differences=(),
        standing=Standing.INCONCLUSIVE,
        why=why,
    )


def baseline(
    hosted: HostedModel, command: EvaluateEdit, options: PromptingOptions, sets: Sequence[UnitSet]
) -> Baseline:
    """Prepare a baseline on as many units of the target sets as controls are run on."""
    return Baseline(
        hosted=hosted,
        command=command,
        options=options,
        targets=tuple(
            subset(one, command.controls.tokens, command.seed) for one in sets if one.role is SetRole.TARGET
        ),
        retain=tuple(one for one in sets if one.role is SetRole.RETAIN),
    )


def _behaviours(readings: Sequence[Readings]) -> _Behaviours:
    """Average the log-odds over all items, or, where there are none, log-probabilities over all tokens."""
    items = [one for one in readings if not isinstance(one, TextReadings)]
    if items:
        plain = torch.cat([one.plain_log_odds for one in items]).mean()
        arms = torch.cat([one.log_odds for one in items], dim=-1).mean(-1)
        return _Behaviours(plain=float(plain), arms=tuple(arms.tolist()))
    texts = [one for one in readings if isinstance(one, TextReadings)]
    predicted = sum(float(one.predicted.sum()) for one in texts)
    plain_nll = sum(float(one.plain_nll.sum()) for one in texts)
    nll = torch.stack([one.nll.sum(-1) for one in texts]).sum(0)
    return _Behaviours(plain=-plain_nll / predicted, arms=tuple((-nll / predicted).tolist()))


def _bracket(known: dict[float, float], wanted: float) -> tuple[float, float] | None:
    """Return the lowest two neighbouring strengths whose behaviours lie on either side."""
    strengths = sorted(known)
    for low, high in pairwise(strengths):
        if (known[low] - wanted) * (known[high] - wanted) <= 0:
            return low, high
    return None


def _difference(units: UnitSet, readings: Readings, resamples: Resamples) -> Figure:
    """KL of the prompt (arm 1) less KL of the edit (arm 0)."""
    difference = readings.kl[1] - readings.kl[0]
    if isinstance(readings, TextReadings):
        figure = resamples.ratio("kl_difference", difference, readings.positions, "nats/token")
    else:
        figure = resamples.mean("kl_difference", difference, "nats")
    return replace(figure, name=f"kl_difference on {units.name}")


def _judged(
    result: PromptingResult,
    chosen: PromptCandidate,
    strength: float | None,
    differences: tuple[Figure, ...],
) -> PromptingResult:
    share = (chosen.behaviour - result.plain_behaviour) / (result.edit_behaviour - result.plain_behaviour)
    told_of = f"the prompt {chosen.label!r} ({chosen.tokens} tokens) has {share:.0%} of the edit's effect"
    if strength is None:
        why = f"{told_of}; at no strength up to 4 does the edit's behaviour equal it"
        return replace(result, chosen=chosen.label, differences=differences, why=why)
    standing = _standing(differences)
    words = {
        Standing.BEATS: "does less damage",
        Standing.DOES_NOT_BEAT: "does no less damage",
        Standing.INCONCLUSIVE: "does damage that cannot be told apart",
    }
    return replace(
        result,
        chosen=chosen.label,
        strength=strength,
        differences=differences,
        standing=standing,
        why=f"{told_of}, as the edit has at strength {strength:.3g}; there the edit {words[standing]}",
    )


def _standing(differences: Sequence[Figure]) -> Standing:
    if any(one.high is not None and one.high <= 0 for one in differences):
        return Standing.DOES_NOT_BEAT
    if all(one.low is not None and one.low > 0 for one in differences):
        return Standing.BEATS
    return Standing.INCONCLUSIVE


def _longest(units: UnitSet) -> int:
    return max(unit.tokens for unit in units.units)
