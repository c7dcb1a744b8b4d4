"""Progress of work that yields how many units are done."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

from trephine.domain.commands import Progress

ResultT = TypeVar("ResultT")


def told(work: Generator[int, None, ResultT], stage: str, total: int) -> Generator[Progress, None, ResultT]:
    """Turn counts into progress of a stage; return what the work returns."""
    while True:
        try:
            done = next(work)
        except StopIteration as stop:
            result: ResultT = stop.value
            return result
        yield Progress(stage=stage, done=done, total=total)
