"""Work that blocks, done at once. By hand, as its twin in `aio`."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

ArgumentsP = ParamSpec("ArgumentsP")
ResultT = TypeVar("ResultT")


def run_blocking(
    work: Callable[ArgumentsP, ResultT], *args: ArgumentsP.args, **kwargs: ArgumentsP.kwargs
) -> ResultT:
    """Do it."""
    return work(*args, **kwargs)
