"""Which job gets the next quantum: interactive ones first, in turn, and nobody starves."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

from trephine.ipc.channel import EVENT_CREDIT

PATIENCE = 8
"""Interactive quanta after which a waiting Operation gets one."""


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """A command that is being carried out."""

    id: int
    command: str
    interactive: bool
    work: Generator[Any, None, Any]
    deadline: float | None
    """On the loop's clock; None if there is none."""
    unacknowledged: int = 0

    @property
    def ready(self) -> bool:
        """True unless its consumer is too far behind."""
        return self.unacknowledged < EVENT_CREDIT


class Schedule:
    """The unfinished jobs, and whose turn it is."""

    def __init__(self) -> None:
        self._by_id: dict[int, Job] = {}
        self._turns: dict[bool, deque[Job]] = {True: deque(), False: deque()}
        self._streak = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Job]:
        return iter(tuple(self._by_id.values()))

    def get(self, id: int) -> Job | None:
        """The unfinished job with this id."""
        return self._by_id.get(id)

    def add(self, job: Job) -> None:
        """Put a new job at the end of its class."""
        self._by_id[job.id] = job
        self._turns[job.interactive].append(job)

    def remove(self, job: Job) -> None:
        """Take a finished job out."""
        del self._by_id[job.id]
        self._turns[job.interactive].remove(job)

    @property
    def any_ready(self) -> bool:
        """True if some job could use a quantum."""
        return any(job.ready for job in self._by_id.values())

    def next(self) -> Job | None:
        """Choose the job that gets the next quantum; None if none is ready."""
        waiting = self._first_ready(interactive=False)
        chosen = self._first_ready(interactive=True)
        if chosen is None or (waiting is not None and self._streak >= PATIENCE):
            chosen = waiting
        if chosen is None:
            return None
        self._streak = self._streak + 1 if chosen.interactive else 0
        turns = self._turns[chosen.interactive]
        turns.remove(chosen)
        turns.append(chosen)
        return chosen

    def _first_ready(self, *, interactive: bool) -> Job | None:
        return next((job for job in self._turns[interactive] if job.ready), None)
