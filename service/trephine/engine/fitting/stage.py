"""One stage of a fit: chunk after chunk through a trainee, with progress, a curve and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import TypeAdapter

from trephine.domain.commands import Progress
from trephine.domain.errors import FitFailedError
from trephine.domain.fitting import FitPoint
from trephine.engine.fitting.activations import Plan
from trephine.engine.fitting.checkpoints import Checkpoints, State, prefixed, under
from trephine.engine.fitting.trainee import Trainee

CURVE_POINTS = 20
CHECKPOINT_SHARE, CHECKPOINT_SECONDS = 10, 60.0
"""A checkpoint every tenth of a stage, and at least once a minute."""

_POINTS = TypeAdapter(list[FitPoint])

Say = Callable[[Progress], None]


class Source(Protocol):
    """Batches by chunk."""

    @property
    def plan(self) -> Plan:
        """How many there are."""
        ...

    def chunk(self, number: int) -> Iterable[Any]:
        """Yield the batches of a chunk; always the same ones."""
        ...


@dataclass(slots=True, kw_only=True)
class Stage:
    """A trainee on its way through a source."""

    name: str
    """Of the checkpoints: `local-0`, `end_to_end`, ..."""
    phase: str
    """Of the curve's points."""
    trainee: Trainee[Any]
    source: Source
    checkpoints: Checkpoints
    say: Say
    curve: list[FitPoint] = field(default_factory=list)
    seconds: float = 0.0

    def run(self) -> None:
        """Go on from the last checkpoint to the end.

        Raises:
            FitFailedError: If training diverges.
            DiskFullError: If a checkpoint finds no room.
        """
        start, chunks = self._take_up(), self.source.plan.chunks
        if start == chunks:
            return
        saved, began = time.monotonic(), time.monotonic() - self.seconds
        for number in range(start, chunks):
            for batch in self.source.chunk(number):
                self.trainee.step(batch)
            done = number + 1
            self._note(done)
            self.seconds = time.monotonic() - began
            if self._is_due(done, time.monotonic() - saved):
                self._save(done)
                saved = time.monotonic()

    def _take_up(self) -> int:
        state = self.checkpoints.latest()
        if state is None:
            self._save(0)
            return 0
        self.trainee.restore(State(tensors=under("trainee", state.tensors), facts=state.facts["trainee"]))
        self.curve = _POINTS.validate_python(state.facts["curve"])
        self.seconds = state.facts["seconds"]
        return int(state.facts["chunk"])

    def _note(self, done: int) -> None:
        plan = self.source.plan
        every = max(1, plan.chunks // CURVE_POINTS)
        if done % every and done != plan.chunks:
            self.say(Progress(stage=self.name, done=plan.tokens(done), total=plan.tokens(plan.chunks)))
            return
        points = self.trainee.points(self.phase, plan.tokens(done))
        if any(point.fvu != point.fvu for point in points):
            raise FitFailedError(
                "training has diverged (the loss is not a number); try a lower learning rate",
                phase=self.phase,
                tokens=plan.tokens(done),
            )
        self.curve += points
        self.say(
            Progress(
                stage=self.name,
                done=plan.tokens(done),
                total=plan.tokens(plan.chunks),
                detail=_detail(points),
            )
        )

    def _is_due(self, done: int, seconds: float) -> bool:
        chunks = self.source.plan.chunks
        tenth = max(1, chunks // CHECKPOINT_SHARE)
        return done == chunks or done % tenth == 0 or seconds > CHECKPOINT_SECONDS

    def _save(self, chunk: int) -> None:
        state = self.trainee.state()
        facts = {
            "trainee": state.facts,
            "curve": _POINTS.dump_python(self.curve, mode="json"),
            "seconds": self.seconds,
        }
        self.checkpoints.save(chunk, State(tensors=prefixed("trainee", state.tensors), facts=facts))


def _detail(points: list[FitPoint]) -> str:
    if not points:
        return ""
    count = len(points)
    shown = (
        f"FVU {sum(p.fvu for p in points) / count:.4f}, L0 {sum(p.l0 for p in points) / count:.1f}, "
        f"dead {sum(p.dead_share for p in points) / count:.1%}"
    )
    kl = points[0].kl
    return shown if kl is None else f"{shown}, KL {kl:.4f}"
