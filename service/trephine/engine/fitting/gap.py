"""The end-to-end phase beside its control: a copy that goes on with the local loss for the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trephine.domain.fitting import FitRecipe, GapClosed
from trephine.engine.fitting.activations import (
    ActivationStream,
    ContextStream,
    Plan,
    bytes_per_token,
    plan,
)
from trephine.engine.fitting.calibration import calibrate
from trephine.engine.fitting.contexts import Contexts
from trephine.engine.fitting.dictionary import Dictionary
from trephine.engine.fitting.end_to_end import EndToEndTrainee
from trephine.engine.fitting.joint import JointTrainee
from trephine.engine.fitting.measures import SplicedFigures, measure_layers, measure_spliced
from trephine.engine.fitting.optimiser import Rate
from trephine.engine.fitting.reconstruction import sites_of
from trephine.engine.fitting.stage import Source, Stage
from trephine.engine.fitting.trainee import Trainee
from trephine.engine.models.hosted import HostedModel

RunStage = Callable[[str, Trainee[Any], Source], Stage]
"""Runs a stage to its end; its name is the phase's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What both arms share: the same contexts in the same order, the same rate, the same L0."""

    hosted: HostedModel
    recipe: FitRecipe
    contexts: Contexts
    run: RunStage

    def close(self, local: Sequence[Dictionary]) -> tuple[list[Dictionary], GapClosed]:
        """Run the phase, and the control if wanted; return the tuned dictionaries and what was gained."""
        plain = measure_spliced(self.hosted, [], self.contexts.held_out)
        before = self._spliced(local)
        cut = self.plan(local)
        tuned, stage = self.end_to_end(local, cut)
        reference, reference_l0, control, seconds = before, self._l0(local), None, None
        if self.recipe.end_to_end.local_control:
            copies, control_stage = self.control(local, cut)
            control = reference = self._spliced(copies)
            reference_l0, seconds = self._l0(copies), control_stage.seconds
        after = self._spliced(tuned)
        gap = _mean(reference) - _mean(plain)
        return tuned, GapClosed(
            ce_plain=_mean(plain),
            ce_local=_mean(before),
            ce_end_to_end=_mean(after),
            ce_local_control=None if control is None else _mean(control),
            closed=(_mean(reference) - _mean(after)) / gap if gap else 0.0,
            l0_change=_larger(self._l0(tuned) / reference_l0 - 1, after.l0 / reference.l0 - 1),
            seconds_end_to_end=stage.seconds,
            seconds_local_control=seconds,
        )

    def plan(self, dictionaries: Sequence[Dictionary]) -> Plan:
        """Cut the phase's tokens into chunks, for both arms."""
        return plan(
            tokens=self.recipe.end_to_end.tokens,
            batch_tokens=self.recipe.batch_tokens,
            positions=self.contexts.positions,
            bytes_per_token=bytes_per_token(self.hosted, sites_of(dictionaries)),
        )

    def end_to_end(self, local: Sequence[Dictionary], cut: Plan) -> tuple[list[Dictionary], Stage]:
        """Tune copies through the whole model."""
        copies = [copied(dictionary) for dictionary in local]
        trainee = EndToEndTrainee(
            self.hosted,
            copies,
            k=self.recipe.k,
            rate=Rate(peak=self.recipe.end_to_end.lr, steps=cut.steps),
            dead_after_tokens=self.recipe.dead_after_tokens,
            seed=self.recipe.seed + 2,
        )
        source = ContextStream(rows=self.contexts.train, plan=cut, seed=self.recipe.seed + 1)
        stage = self.run("end_to_end", trainee, source)
        self._calibrate(copies)
        return copies, stage

    def control(self, local: Sequence[Dictionary], cut: Plan) -> tuple[list[Dictionary], Stage]:
        """Train copies on with the local loss, on the same contexts."""
        copies = [copied(dictionary) for dictionary in local]
        trainee = JointTrainee(
            copies,
            k=self.recipe.k,
            rate=Rate(peak=self.recipe.end_to_end.lr, steps=cut.steps),
            dead_after_tokens=self.recipe.dead_after_tokens,
        )
        source = ActivationStream(
            hosted=self.hosted,
            rows=self.contexts.train,
            sites=sites_of(copies),
            plan=cut,
            seed=self.recipe.seed + 1,
        )
        stage = self.run("local_control", trainee, source)
        self._calibrate(copies)
        return copies, stage

    def _calibrate(self, dictionaries: Sequence[Dictionary]) -> None:
        calibrate(self.hosted, dictionaries, self.contexts.calibration, self.recipe.k, spliced=True)

    def _spliced(self, dictionaries: Sequence[Dictionary]) -> SplicedFigures:
        return measure_spliced(self.hosted, dictionaries, self.contexts.held_out)

    def _l0(self, dictionaries: Sequence[Dictionary]) -> float:
        layers = measure_layers(self.hosted, dictionaries, self.contexts.held_out)
        return sum(layer.l0 for layer in layers) / len(layers)


def copied(dictionary: Dictionary) -> Dictionary:
    """Return a copy with weights of its own."""
    copy = Dictionary(dictionary.place, dictionary.weights()).to(dictionary.W_enc.device)
    copy.threshold = dictionary.threshold
    return copy


def _mean(figures: SplicedFigures) -> float:
    return float(torch.mean(figures.ce))


def _larger(first: float, second: float) -> float:
    return max(first, second, key=abs)
