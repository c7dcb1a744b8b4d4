"""Work in bounded pieces: generators that yield to the engine's loop between quanta."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


def finish(work: Generator[Any, None, ResultT]) -> ResultT:
    """Run a generator of quanta to its end, dropping what it yields, and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: ResultT = end.value
            return result
