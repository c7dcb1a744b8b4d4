"""A real engine process with handlers that need no model."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from trephine.domain.ablation import LogitTarget
from trephine.domain.activations import ReadActivations
from trephine.domain.circuits import DiscoverCircuit
from trephine.domain.edits import ProposeEdit
from trephine.domain.errors import (
    CorruptRecordError,
    DeadlinePassedError,
    EngineLostError,
    InternalError,
    OverBudgetError,
    UnsupportedOptionError,
)
from trephine.domain.generation import Generate, Row, Score, ScoredRow, TokenEvent
from trephine.domain.models import AskStatus
from trephine.domain.tokens import RenderChat, ResolveTarget, Tokenize
from trephine.ipc.engine_proxy import EngineProxy, SubprocessEngineLauncher

ROOT = Path(__file__).resolve().parents[2]
HANDLERS = "tests.fakes.handlers:HANDLERS"
HANG_SECONDS = 60.0
TARGET = LogitTarget(token="#1")

pytestmark = pytest.mark.integration


def launcher(logs: list[Mapping[str, Any]]) -> SubprocessEngineLauncher:
    return SubprocessEngineLauncher(
        handlers=HANDLERS, sink=logs.append, environment={"PYTHONPATH": str(ROOT)}
    )


@pytest.fixture
def logs() -> list[Mapping[str, Any]]:
    return []


@pytest.fixture
async def engine(logs: list[Mapping[str, Any]]) -> AsyncIterator[EngineProxy]:
    engine = await launcher(logs).launch()
    yield engine
    await engine.close()


def endless(prompt: str = "x") -> DiscoverCircuit:
    return DiscoverCircuit(prompt=prompt, target=TARGET)


async def until(condition: Any) -> None:
    async with asyncio.timeout(HANG_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


def gone(pid: int) -> bool:
    """True once no such process runs; a zombie that its parent has not reaped has ended, too."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


async def test_a_command_comes_back_as_its_result_type(engine: EngineProxy) -> None:
    """A result crosses the border as the domain value that the handler returned."""
    tokens = await engine.run(Tokenize(text="aé"))
    assert [token.raw for token in tokens.tokens] == [b"a", "é".encode()]


async def test_an_engine_that_was_killed_fails_every_waiting_call(engine: EngineProxy) -> None:
    """Kill -9 of the engine ends all its calls with EngineLostError, and later ones too."""
    calls = [asyncio.create_task(engine.run(endless())) for _ in range(3)]
    await engine.run(Tokenize(text="a"))
    os.kill(engine.pid, signal.SIGKILL)
    async with asyncio.timeout(HANG_SECONDS):
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [EngineLostError] * 3
    assert not engine.alive
    with pytest.raises(EngineLostError):
        await engine.run(Tokenize(text="a"))


async def test_an_engine_that_dies_in_a_quantum_is_lost(engine: EngineProxy) -> None:
    """A handler that kills its own process gives EngineLostError to its caller."""
    with pytest.raises(EngineLostError):
        await engine.run(ResolveTarget(text="die"))
    await until(lambda: gone(engine.pid))


async def test_the_engine_ends_with_a_killed_parent(tmp_path: Path) -> None:
    """Kill -9 of the parent closes the socket; the engine closes its jobs and is gone."""
    marker = tmp_path / "marker"
    script = (
        "import asyncio, sys\n"
        "from trephine.domain.ablation import LogitTarget\n"
        "from trephine.domain.circuits import DiscoverCircuit\n"
        "from trephine.domain.models import AskStatus\n"
        "from trephine.ipc.engine_proxy import SubprocessEngineLauncher\n"
        "async def main():\n"
        f"    engine = await SubprocessEngineLauncher(handlers={HANDLERS!r}).launch()\n"
        f"    command = DiscoverCircuit(prompt={str(marker)!r}, target=LogitTarget(token='#1'))\n"
        "    work = asyncio.create_task(engine.run(command))\n"
        "    while (await engine.run(AskStatus())).quanta < 20: pass  # it has had quanta\n"
        "    print(engine.pid, flush=True)\n"
        "    await work\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
    )
    assert parent.stdout is not None
    with parent, parent.stdout:
        pid = int(await asyncio.to_thread(parent.stdout.readline))
        assert not gone(pid)
        parent.kill()
    await until(lambda: gone(pid))
    assert marker.read_text(encoding="utf-8") == "closed"


async def test_cancelling_the_caller_ends_the_work_within_one_quantum(
    engine: EngineProxy, tmp_path: Path
) -> None:
    """After a cancel no quantum of that job runs, its finally blocks ran, and the loop goes on."""
    marker = tmp_path / "marker"
    work = asyncio.create_task(engine.run(endless(str(marker))))
    while (before := await engine.run(AskStatus())).quanta < 20:
        assert not work.done()
    assert before.jobs == 2
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    first = await engine.run(AskStatus())
    second = await engine.run(AskStatus())
    assert marker.read_text(encoding="utf-8") == "closed"
    assert first.jobs == second.jobs == 1
    assert second.quanta - first.quanta == 1, "only the status call itself may have had a quantum"


async def test_interactive_calls_are_answered_during_an_operation(engine: EngineProxy) -> None:
    """While an Operation runs, a short call needs a handful of its quanta, not its end."""
    work = asyncio.create_task(engine.run(endless()))
    start = await engine.run(AskStatus())
    for _ in range(20):
        await engine.run(Tokenize(text="abc"))
    end = await engine.run(AskStatus())
    assert not work.done()
    assert end.quanta - start.quanta > 20, "the Operation must not starve"
    work.cancel()


async def test_a_crash_in_a_handler_leaves_the_loop_alive(
    engine: EngineProxy, logs: list[Mapping[str, Any]]
) -> None:
    """A defect is an InternalError without its text; the log has the trace, never the prompt."""
    with pytest.raises(InternalError) as caught:
        await engine.run(ResolveTarget(text="x"))
    assert "secret" not in str(caught.value)
    assert caught.value.context == {"command": "ResolveTarget", "exception": "RuntimeError"}
    with pytest.raises(OverBudgetError):
        await engine.run(ResolveTarget(text="memory"))
    assert len((await engine.run(Tokenize(text="abc"))).tokens) == 3
    await until(lambda: any(record["event"] == "command_failed" for record in logs))
    record = next(record for record in logs if record["event"] == "command_failed")
    assert "handlers.py" in record["trace"][-1]
    assert "secret" not in str(logs)


async def test_a_slow_consumer_slows_only_its_own_command(engine: EngineProxy) -> None:
    """A consumer that takes one event holds its generation at the credit; others run freely."""
    release = asyncio.Event()
    taken: list[TokenEvent] = []

    async def consume(event: TokenEvent) -> None:
        taken.append(event)
        await release.wait()

    slow = asyncio.create_task(
        engine.run(Generate(rows=(Row(prompt="x"),), max_new_tokens=200), on_event=consume)
    )
    await until(lambda: taken)
    settled = await engine.run(AskStatus())
    for _ in range(50):
        await engine.run(Tokenize(text="a"))
    later = await engine.run(AskStatus())
    assert later.quanta - settled.quanta <= 2 * 50 + 1 + 32, "the slow job must stop at its credit"
    assert len(taken) == 1
    release.set()
    await slow
    assert [event.step for event in taken] == list(range(200))


async def test_a_result_of_64_mib_crosses(engine: EngineProxy) -> None:
    """A large array arrives whole, and the event loop breathes meanwhile."""
    breaths = 0

    async def breathe() -> None:
        nonlocal breaths
        while True:
            await asyncio.sleep(0)
            breaths += 1

    breathing = asyncio.create_task(breathe())
    result = await engine.run(ReadActivations(text="64", features=()))
    breathing.cancel()
    assert result.values.shape == (64 << 20,)
    assert result.values.data[:2] == result.values.data[-2:] == b"\x07\x07"
    assert breaths > 64, "no MiB of it may hold the loop"


async def test_a_passed_deadline_is_typed(engine: EngineProxy) -> None:
    """Work that is longer than its deadline ends with DeadlinePassedError and leaves no job."""
    with pytest.raises(DeadlinePassedError):
        await engine.run(endless(), deadline_seconds=0.2)
    assert (await engine.run(AskStatus())).jobs == 1


async def test_a_hanging_quantum_does_not_hold_its_caller(engine: EngineProxy) -> None:
    """Even when a quantum is far too long, the caller's deadline holds."""
    async with asyncio.timeout(HANG_SECONDS):
        with pytest.raises(DeadlinePassedError):
            await engine.run(ProposeEdit(prompt="600", target=TARGET), deadline_seconds=0.2)


async def test_a_command_without_handler_is_refused(engine: EngineProxy) -> None:
    """An engine says which command it does not carry out."""
    with pytest.raises(UnsupportedOptionError, match="Score"):
        await engine.run(Score(rows=(ScoredRow(prompt="a", continuation="b"),)))


async def test_a_raising_consumer_cancels_its_command(engine: EngineProxy) -> None:
    """If the consumer of events raises, its error reaches the caller and the work ends."""

    async def consume(event: TokenEvent) -> None:
        raise CorruptRecordError("no")

    with pytest.raises(CorruptRecordError):
        await engine.run(Generate(rows=(Row(prompt="x"),), max_new_tokens=10_000), on_event=consume)
    assert (await engine.run(AskStatus())).jobs == 1


async def test_the_engine_sees_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens in the environment do not reach the engine."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setenv("HF_TOKEN", "x")
    engine = await launcher([]).launch()
    try:
        names = (await engine.run(RenderChat(messages=()))).text
    finally:
        await engine.close()
    assert "SECRET" not in names
    assert "HF_TOKEN" not in names
    assert "torch=False" in names, "the loop itself must not need torch"


async def test_close_ends_the_process_and_its_calls(logs: list[Mapping[str, Any]]) -> None:
    """Closing gives waiting calls EngineLostError and leaves no process; closing twice is no error."""
    engine = await launcher(logs).launch()
    work = asyncio.create_task(engine.run(endless()))
    await engine.run(Tokenize(text="a"))
    await engine.close()
    await engine.close()
    with pytest.raises(EngineLostError):
        await work
    assert gone(engine.pid)


async def test_close_kills_an_engine_that_hangs_in_a_quantum() -> None:
    """An engine that is stuck in native code is gone after a close."""
    engine = await launcher([]).launch()
    work = asyncio.create_task(engine.run(ProposeEdit(prompt="600", target=TARGET)))
    await engine.run(Tokenize(text="a"))
    async with asyncio.timeout(HANG_SECONDS):
        await engine.close()
    assert gone(engine.pid)
    with pytest.raises(EngineLostError):
        await work


async def test_an_engine_that_cannot_start_is_lost(logs: list[Mapping[str, Any]]) -> None:
    """A broken start is a typed error at the first call, and the log says why."""
    engine = await SubprocessEngineLauncher(handlers="no_such_module:X", sink=logs.append).launch()
    with pytest.raises(EngineLostError):
        await engine.run(Tokenize(text="a"))
    await until(lambda: any("no_such_module" in str(record) for record in logs))
    await engine.close()
