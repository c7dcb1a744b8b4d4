"""What an engine process holds while it lives, and what its handlers are."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trephine.domain.errors import ModelNotReadyError
from trephine.domain.models import AskStatus, EngineStatus

if TYPE_CHECKING:
    from trephine.engine.models.hosted import HostedModel


@dataclass(slots=True)
class LoopCounters:
    """Counters of the loop, for tests and health."""

    quanta: int = 0
    jobs: int = 0
    longest_quantum_seconds: float = 0.0


@dataclass(slots=True)
class Session:
    """The state of one engine: the model that it hosts, once LoadModel has run."""

    hosted: HostedModel | None = None
    counters: LoopCounters = field(default_factory=LoopCounters)

    def require_model(self) -> HostedModel:
        """Return the hosted model.

        Raises:
            ModelNotReadyError: If none has been loaded.
        """
        if self.hosted is None:
            raise ModelNotReadyError("this engine has no model yet; load one first")
        return self.hosted


Handler = Callable[[Session, Any], Generator[Any, None, Any]]
"""Carries out one command: yields after every bounded quantum (None, or an event), returns the result."""


def ask_status(session: Session, command: AskStatus) -> Generator[None, None, EngineStatus]:
    """Read the loop's counters in one quantum."""
    yield from ()
    counters = session.counters
    return EngineStatus(
        quanta=counters.quanta,
        jobs=counters.jobs,
        longest_quantum_seconds=counters.longest_quantum_seconds,
    )


HANDLERS: dict[type, Handler] = {AskStatus: ask_status}
