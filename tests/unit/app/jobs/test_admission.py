"""The gate in front of an engine, and predicted costs."""

from __future__ import annotations

import asyncio

import pytest

from tests.unit.app.house import model_info
from trephine.app.jobs.admission import Admission
from trephine.app.jobs.costs import CHEAP, Cost, predict
from trephine.domain.commands import Command
from trephine.domain.errors import OverBudgetError, QueueFullError
from trephine.domain.generation import Generate, Row
from trephine.domain.models import AskStatus, DescribeCapabilities
from trephine.domain.tokens import Tokenize


def cost(tokens: int) -> Cost:
    """A cost without memory."""
    return Cost(tokens=tokens, memory_bytes=0)


class Caller:
    """Holds a place until told to leave."""

    def __init__(self, gate: Admission, tokens: int) -> None:
        self.inside, self.leave = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._call(gate, tokens))

    async def _call(self, gate: Admission, tokens: int) -> None:
        async with gate.admit(cost(tokens)):
            self.inside.set()
            await self.leave.wait()


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_calls_run_side_by_side_up_to_the_bound_then_in_order():
    """60 + 30 fit into 100; 20 and 5 wait in the order they came, although 5 would fit."""
    gate = Admission(tokens_in_flight=100)
    first, second, third, fourth = (Caller(gate, tokens) for tokens in (60, 30, 20, 5))
    await settle()
    assert [caller.inside.is_set() for caller in (first, second, third, fourth)] == [True, True, False, False]
    second.leave.set()
    await settle()
    assert third.inside.is_set()
    assert fourth.inside.is_set()
    for caller in (first, third, fourth):
        caller.leave.set()
    await asyncio.gather(*(caller.task for caller in (first, second, third, fourth)))


async def test_call_above_the_bound_runs_alone():
    """A single call larger than the bound waits for an empty engine, not forever."""
    gate = Admission(tokens_in_flight=100)
    small = Caller(gate, 10)
    await settle()
    large = Caller(gate, 1000)
    await settle()
    assert not large.inside.is_set()
    small.leave.set()
    await settle()
    assert large.inside.is_set()
    large.leave.set()
    await large.task


async def test_full_queue_refuses_at_once():
    """The queue is bounded."""
    gate = Admission(tokens_in_flight=10, queue=1)
    callers = [Caller(gate, 10), Caller(gate, 10)]
    await settle()
    with pytest.raises(QueueFullError):
        async with gate.admit(cost(1)):
            pass
    for caller in callers:
        caller.leave.set()
    await asyncio.gather(*(caller.task for caller in callers))


async def test_cancelled_waiter_leaves_no_trace():
    """One who leaves the queue frees its place, also in the instant of being admitted."""
    gate = Admission(tokens_in_flight=10, queue=1)
    first, second = Caller(gate, 10), Caller(gate, 10)
    await settle()
    second.task.cancel()
    await settle()
    third = Caller(gate, 10)
    await settle()
    first.leave.set()
    await asyncio.sleep(0)
    third.task.cancel()
    await settle()
    async with asyncio.timeout(60), gate.admit(cost(10)):
        pass


async def test_cheap_calls_never_wait():
    """A command without tokens passes a gate that is full."""
    gate = Admission(tokens_in_flight=1, queue=0)
    caller = Caller(gate, 1)
    await settle()
    async with asyncio.timeout(60), gate.admit(CHEAP):
        pass
    caller.leave.set()
    await caller.task


async def test_over_budget_is_refused_before_waiting():
    """Memory above the budget can never be had."""
    with pytest.raises(OverBudgetError):
        async with Admission(memory_budget_bytes=10).admit(Cost(tokens=1, memory_bytes=11)):
            pass


@pytest.mark.parametrize("command", [Tokenize(text="x" * 10_000), AskStatus(), DescribeCapabilities()])
def test_commands_without_a_forward_pass_are_cheap(command: Command):
    """Tokenising, status and capabilities never queue."""
    assert predict(command, model_info()) == CHEAP


def test_cost_grows_with_rows_and_tokens():
    """Twice the rows cost twice."""
    one = predict(Generate(rows=(Row(prompt="abc"),), max_new_tokens=9), model_info())
    two = predict(Generate(rows=(Row(prompt="abc"),) * 2, max_new_tokens=9), model_info())
    assert one.tokens == 10
    assert two.tokens == 20
    assert two.memory_bytes == 2 * one.memory_bytes
