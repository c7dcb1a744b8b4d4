"""Turning an engine's pushed events into a stream that ends with its reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TypeVar

from trephine.domain.commands import Command
from trephine.domain.ports import Engine
from trephine.rpc.calls import Context

ResultT = TypeVar("ResultT")
EventT = TypeVar("EventT")

BUFFERED_EVENTS = 32
"""A reader that is slower than this many events slows its own command (DESIGN 5.10)."""


def remaining(context: Context) -> float | None:
    """Seconds until the caller's deadline; None without one."""
    seconds = context.time_remaining()
    return None if seconds is None else max(float(seconds), 0.0)


async def streamed(
    engine: Engine, command: Command[ResultT, EventT], deadline_seconds: float | None
) -> AsyncGenerator[EventT | ResultT, None]:
    """Yield a command's events in order, then its result. Closing the iterator cancels the command.

    Raises:
        TrephineError: Whatever the command raised, after the events that came before.
    """
    events: asyncio.Queue[EventT] = asyncio.Queue(maxsize=BUFFERED_EVENTS)
    work = asyncio.create_task(engine.run(command, on_event=events.put, deadline_seconds=deadline_seconds))
    try:
        async for event in _until_done(events, work):
            yield event
        yield await work
    finally:
        work.cancel()
        await asyncio.wait({work})


async def _until_done(
    events: asyncio.Queue[EventT], work: asyncio.Task[ResultT]
) -> AsyncGenerator[EventT, None]:
    while not (work.done() and events.empty()):
        following = asyncio.create_task(events.get())
        try:
            await asyncio.wait({work, following}, return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                yield following.result()
        finally:
            following.cancel()
