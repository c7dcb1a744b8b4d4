"""Work that blocks, done in a thread: the event loop goes on. Written by hand, as its sync twin."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

ArgumentsP = ParamSpec("ArgumentsP")
ResultT = TypeVar("ResultT")


async def run_blocking(
    work: Callable[ArgumentsP, ResultT], *args: ArgumentsP.args, **kwargs: ArgumentsP.kwargs
) -> ResultT:
    """Do it in a thread and wait for it."""
    return await asyncio.to_thread(work, *args, **kwargs)
