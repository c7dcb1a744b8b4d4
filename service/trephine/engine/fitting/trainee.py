"""What a stage drives: something that takes batches, has figures, and can be put down and taken up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from trephine.domain.fitting import FitPoint
from trephine.engine.fitting.checkpoints import State, prefixed, under
from trephine.engine.fitting.dictionary import Dictionary

BatchT = TypeVar("BatchT", contravariant=True)


class Trainee(Protocol[BatchT]):
    """Dictionaries in training."""

    @property
    def dictionaries(self) -> Sequence[Dictionary]:
        """What has been learnt so far; thresholds are not calibrated."""
        ...

    def step(self, batch: BatchT) -> None:
        """Learn from one batch."""
        ...

    def points(self, phase: str, tokens: int) -> list[FitPoint]:
        """Return figures averaged since the last call."""
        ...

    def state(self) -> State:
        """Return all that training goes on from."""
        ...

    def restore(self, state: State) -> None:
        """Go on from a state."""
        ...


@dataclass(slots=True)
class Means:
    """Means of figures since they were last read; kept on the device until then."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, value: Tensor) -> None:
        """Count one value in."""
        kept = value.detach()
        self.sums[name] = self.sums[name] + kept if name in self.sums else kept
        self.counts[name] = self.counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return the means and start anew."""
        means = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts = {}, {}
        return means

    def facts(self) -> dict[str, tuple[float, int]]:
        """Return what was counted, as JSON."""
        return {name: (float(total), self.counts[name]) for name, total in self.sums.items()}

    @classmethod
    def of(cls, facts: Mapping[str, Sequence[float]]) -> Means:
        """Go on from `facts`."""
        sums = {name: torch.tensor(total) for name, (total, _) in facts.items()}
        return cls(sums=sums, counts={name: int(count) for name, (_, count) in facts.items()})


@dataclass(slots=True)
class Firing:
    """How many positions ago each feature fired."""

    since: Tensor
    """`(d_sae,)`, positions."""
    dead_after: int

    @classmethod
    def of(cls, dictionary: Dictionary, dead_after: int) -> Firing:
        """Start counting; every feature counts as having just fired."""
        return cls(since=torch.zeros(dictionary.d_sae, device=dictionary.W_enc.device), dead_after=dead_after)

    @property
    def dead(self) -> Tensor:
        """Bool `(d_sae,)`."""
        return self.since > self.dead_after

    def see(self, activations: Tensor) -> None:
        """Count a batch `(..., d_sae)`."""
        rows = activations.detach().flatten(0, -2)
        fired = (rows > 0).any(0)
        self.since = torch.where(fired, torch.zeros_like(self.since), self.since + len(rows))


@dataclass(frozen=True, slots=True)
class Side:
    """Trainees that learn from the same batches, each on its own layer."""

    trainees: Sequence[Trainee[Any]]

    @property
    def dictionaries(self) -> Sequence[Dictionary]:
        """Of all, in order."""
        return [d for trainee in self.trainees for d in trainee.dictionaries]

    def step(self, batch: Any) -> None:
        """Give the batch to each."""
        for trainee in self.trainees:
            trainee.step(batch)

    def points(self, phase: str, tokens: int) -> list[FitPoint]:
        """Return the points of all."""
        return [point for trainee in self.trainees for point in trainee.points(phase, tokens)]

    def state(self) -> State:
        """Join the states of all."""
        states = [trainee.state() for trainee in self.trainees]
        tensors: dict[str, Tensor] = {}
        for number, state in enumerate(states):
            tensors |= prefixed(str(number), state.tensors)
        return State(tensors=tensors, facts={"parts": [state.facts for state in states]})

    def restore(self, state: State) -> None:
        """Hand every part its state."""
        for number, (trainee, facts) in enumerate(zip(self.trainees, state.facts["parts"], strict=True)):
            trainee.restore(State(tensors=under(str(number), state.tensors), facts=facts))


def load_weights(dictionary: Dictionary, weights: Mapping[str, Tensor]) -> None:
    """Overwrite a dictionary's parameters in place."""
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            parameter.copy_(weights[name])
