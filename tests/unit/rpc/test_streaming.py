"""Streams of engine events."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing

import pytest

from tests.fakes.engine import FakeEngine, Script
from trephine.domain.commands import Progress
from trephine.domain.errors import OverBudgetError
from trephine.domain.tokens import Tokenize, Tokens
from trephine.rpc.streaming import BUFFERED_EVENTS, streamed

EVENTS = tuple(Progress(stage="s", done=n, total=200) for n in range(200))
RESULT = Tokens(tokens=())


async def test_events_then_result():
    """Every event arrives in order, whatever the buffer holds, and the result comes last."""
    engine = FakeEngine({Tokenize: Script(events=EVENTS, result=RESULT)})
    assert [one async for one in streamed(engine, Tokenize(text="a"), None)] == [*EVENTS, RESULT]


async def test_errors_come_after_the_events_before_them():
    """A command that fails after some events yields those first."""
    engine = FakeEngine({Tokenize: Script(events=EVENTS[:50], result=OverBudgetError("less"))})
    async with aclosing(streamed(engine, Tokenize(text="a"), None)) as events:
        assert [await anext(events) for _ in range(50)] == list(EVENTS[:50])
        with pytest.raises(OverBudgetError):
            await anext(events)


async def test_closing_cancels_the_command():
    """Leaving the stream early cancels the engine's work before the stream is closed."""
    engine = FakeEngine({Tokenize: Script(events=EVENTS, hold=asyncio.Event(), result=RESULT)})
    async with aclosing(streamed(engine, Tokenize(text="a"), None)) as events:
        assert await anext(events) == EVENTS[0]
    assert len(engine.cancelled) == 1


async def test_unread_events_are_bounded():
    """An engine waits once the buffer is full."""
    handed = []

    class Counted(tuple):
        def __iter__(self) -> Iterator[Progress]:
            for event in super().__iter__():
                handed.append(event)
                yield event

    engine = FakeEngine({Tokenize: Script(events=Counted(EVENTS), result=RESULT)})
    async with aclosing(streamed(engine, Tokenize(text="a"), None)) as events:
        await anext(events)
        await asyncio.sleep(0.05)
        assert len(handed) <= BUFFERED_EVENTS + 3
