"""One request in work: its texts, its head, and pooled vectors of whatever is asked for, with progress."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.errors import InvalidRequestError
from trephine.domain.sites import NEURONS, FeatureRef
from trephine.domain.spurious_heads import ProbeHead, RewardHead, TokenHead
from trephine.domain.spurious_removal import RemoveSpuriousFeatures
from trephine.engine.dataset_circuits.space import NodeSpace
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.sets import require_feature
from trephine.engine.spurious.effects import feature_space
from trephine.engine.spurious.examples import Data, Example, labels, read_data, sample, sample_pairs
from trephine.engine.spurious.heads import (
    LinearHead,
    fit_probe,
    given_head,
    readout_of,
    reward_doubt,
    reward_head,
    token_head,
)
from trephine.engine.spurious.orienting import oriented_by_head, oriented_by_twins, orienting_texts
from trephine.engine.spurious.pairs import partners
from trephine.engine.spurious.pooling import Ids, Readout, pool_texts

ResultT = TypeVar("ResultT")
Removed = Sequence[FeatureRef]


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Everything that later stages read."""

    hosted: HostedModel
    command: RemoveSpuriousFeatures
    data: Data
    readout: Readout
    space: NodeSpace
    fitted: tuple[Example, ...]
    """Ambiguous texts that heads are trained on."""
    head: LinearHead
    doubts: tuple[str, ...] = ()
    """What a reader must know of the head that was given."""

    @property
    def trains(self) -> bool:
        """True if the head is trained again after a removal."""
        return self.command.refit

    @property
    def part(self) -> str:
        """What counts are compared on, in words."""
        return "validation split" if self.command.validation else "held-out part"

    def pool(
        self, texts: Sequence[Ids], removed: Removed, stage: str
    ) -> Generator[Progress | None, None, Tensor]:
        """Pool texts with features removed, `(n_texts, d_model)`."""
        return counted(pool_texts(self.hosted, self.readout, texts, removed), stage, len(texts))

    @property
    def everything(self) -> tuple[Example, ...]:
        """Texts that the final head is trained on: what was held out of the ambiguous set counts again.

        A validation split that was given apart stays apart: it may be balanced.
        """
        return self.fitted if self.command.validation else (*self.fitted, *self.data.held_out)

    def trained(self, pooled: Tensor, texts: Sequence[Example]) -> LinearHead:
        """Train the head again on vectors `(n_texts, d_model)` of texts."""
        decision = self.command.decision
        probe = decision if isinstance(decision, ProbeHead) else ProbeHead()
        return fit_probe(probe, self.readout, pooled, labels(texts), self.pairs(texts))

    def trained_twice(self, everything: Tensor) -> tuple[LinearHead, LinearHead]:
        """Return what decides, and the same without what is held out; as it was where no head is trained.

        Args:
            everything: Vectors of `everything`, `(n_texts, d_model)`.
        """
        if not self.trains:
            return self.head, self.head
        fitted = everything[: len(self.fitted)]
        return self.trained(everything, self.everything), self.trained(fitted, self.fitted)

    def pairs(self, texts: Sequence[Example]) -> Tensor | None:
        """Return the pairs `(n_pairs, 2)` that a head is trained on; None: on the texts."""
        return trained_pairs(self.command, texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Laid:
    """What is known of a request before a forward pass."""

    data: Data
    readout: Readout
    space: NodeSpace


def lay_out(hosted: HostedModel, command: RemoveSpuriousFeatures) -> Laid:
    """Find where the head reads, lay out the features that reach it, and read the texts; nothing is run.

    Raises:
        TrephineError: Naming the text, the label or the option that cannot be used.
    """
    readout = readout_of(hosted, command.decision)
    space = feature_space(hosted, command.replacement, command.layers, readout)
    for number, override in enumerate(command.overrides):
        require_feature(hosted, override.feature, field=f"overrides[{number}].feature")
        _require_considered(space, override.feature, field=f"overrides[{number}].feature")
    return Laid(data=read_data(hosted, command), readout=readout, space=space)


def open_study(
    hosted: HostedModel, command: RemoveSpuriousFeatures
) -> Generator[Progress | None, None, Study]:
    """Read texts, lay out features, and make the head.

    Raises:
        TrephineError: Naming the text, the label or the option that cannot be used.
    """
    yield Progress(stage="texts", done=0, total=1)
    laid = lay_out(hosted, command)
    data, readout, space = laid.data, laid.readout, laid.space
    draw = sample_pairs if _on_pairs(command) else sample
    count = command.budget.fit_texts
    fitted = draw(data.training, count, command.seed)
    yield Progress(stage="texts", done=1, total=1)
    head, doubts = yield from _head(hosted, command, data, readout, fitted)
    data = yield from _oriented(hosted, data, head)
    return Study(
        hosted=hosted,
        command=command,
        data=data,
        readout=readout,
        space=space,
        fitted=draw(data.training, count, command.seed),  # the same texts, as they are oriented now
        head=head,
        doubts=doubts,
    )


def trained_pairs(command: RemoveSpuriousFeatures, texts: Sequence[Example]) -> Tensor | None:
    """Return the pairs `(n_pairs, 2)` of texts that the head is trained on; None: it is trained on texts."""
    return partners(texts) if _on_pairs(command) else None


def _on_pairs(command: RemoveSpuriousFeatures) -> bool:
    return isinstance(command.decision, ProbeHead) and command.decision.pairs


def _require_considered(space: NodeSpace, feature: FeatureRef, *, field: str) -> None:
    """Refuse a word on a feature that is not among those that may go: it would change nothing, silently.

    Raises:
        InvalidRequestError: Naming the set whose features are, or its layers.
    """
    layers = [one.layer for one in space.places if one.owner == feature.replacement]
    if feature.layer not in layers:
        owner = space.places[0].owner
        if feature.replacement != owner:
            form = "LAYER:INDEX" if owner == NEURONS else f"{owner}:LAYER:INDEX"
            raise InvalidRequestError(
                f"{field}: {feature} is of {feature.replacement}, and features of "
                f"{owner} are what may go; write {form}, or choose {feature.replacement}",
                field=field,
            )
        raise InvalidRequestError(
            f"{field}: {feature} is not among the features that may go (of {owner}: "
            f"layers {min(layers)} to {max(layers)}); the head reads before it, or `layers` leaves it out",
            field=field,
        )


def _oriented(hosted: HostedModel, data: Data, head: LinearHead) -> Generator[Progress | None, None, Data]:
    """Say which value of the attribute goes with which label where counts of texts do not."""
    data = oriented_by_twins(data)
    known = orienting_texts(data)
    if known is None:
        return data
    texts = [one.ids for one in known[1]]
    pooled = yield from counted(pool_texts(hosted, head.readout, texts), "attribute", len(texts))
    return oriented_by_head(data, known, head.margin(pooled))


def _head(
    hosted: HostedModel,
    command: RemoveSpuriousFeatures,
    data: Data,
    readout: Readout,
    fitted: Sequence[Example],
) -> Generator[Progress | None, None, tuple[LinearHead, tuple[str, ...]]]:
    """Make the head, and say what must be known of it."""
    decision = command.decision
    if isinstance(decision, TokenHead):
        return token_head(hosted, decision), ()
    score: Tensor | None = None
    if not isinstance(decision, ProbeHead):
        score = yield from given_head(hosted, decision, data.labels)
        if not isinstance(decision, RewardHead):
            return LinearHead(readout=readout, weight=score, bias=torch.zeros(2)), ()
    texts = [one.ids for one in fitted]
    pooled = yield from counted(pool_texts(hosted, readout, texts), "head", len(texts))
    y = labels(fitted)
    if isinstance(decision, ProbeHead):
        return fit_probe(decision, readout, pooled, y, trained_pairs(command, fitted)), ()
    if score is None:
        raise ValueError("a reward needs a score")
    doubts = reward_doubt(score, pooled, y, data.labels)
    return reward_head(score, decision.threshold, pooled, y), doubts


def counted(
    work: Generator[int | None, None, ResultT], stage: str, total: int
) -> Generator[Progress | None, None, ResultT]:
    """Turn counts into progress of a stage; return what the work returns."""
    while True:
        try:
            done = next(work)
        except StopIteration as stop:
            result: ResultT = stop.value
            return result
        yield None if done is None else Progress(stage=stage, done=done, total=total)


def quiet(work: Generator[Progress | None, None, ResultT]) -> Generator[None, None, ResultT]:
    """Keep the quanta of a small part of a stage, and leave its progress to the stage."""
    while True:
        try:
            next(work)
        except StopIteration as stop:
            result: ResultT = stop.value
            return result
        yield None
