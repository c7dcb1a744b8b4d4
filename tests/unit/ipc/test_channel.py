"""Calls over a socket pair: results, events, errors, cancels, losses; asyncio side and blocking side."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from trephine.domain.errors import (
    CancelledByCallerError,
    DeadlinePassedError,
    EngineLostError,
    InternalError,
    InvalidRequestError,
    MessageTooLargeError,
    ModelNotReadyError,
)
from trephine.ipc.blocking import BlockingChannel
from trephine.ipc.channel import EVENT_CREDIT, Channel
from trephine.ipc.frames import Frame, FrameLimits, Tree

HANG_SECONDS = 60.0


@pytest.fixture(autouse=True)
async def hang_guard() -> AsyncIterator[None]:
    """No test here may hang."""
    async with asyncio.timeout(HANG_SECONDS):
        yield


@asynccontextmanager
async def channels(
    serve: Any = None, limits: FrameLimits | None = None
) -> AsyncIterator[tuple[Channel, Channel]]:
    """Two connected asyncio channels; the second one serves."""
    left, right = socket.socketpair()
    asking = Channel(left, lost=EngineLostError, limits=limits or FrameLimits())
    serving = Channel(right, lost=EngineLostError, serve=serve, limits=limits or FrameLimits())
    await asking.open()
    await serving.open()
    try:
        yield asking, serving
    finally:
        await asking.close()
        await serving.close()


async def echo(request: Frame) -> Tree:
    return {"command": request.command, "body": request.body}


async def test_a_call_returns_what_the_peer_answers() -> None:
    """Concurrent calls get their own answers."""
    async with channels(echo) as (asking, _):
        frames = await asyncio.gather(*(asking.call("Echo", index) for index in range(20)))
    assert [frame.body["body"] for frame in frames] == list(range(20))


async def test_typed_errors_cross_and_defects_do_not_leak() -> None:
    """A typed error arrives as itself; an unexpected one as InternalError without its text."""

    async def serve(request: Frame) -> Tree:
        if request.command == "Typed":
            raise ModelNotReadyError("load it first", model="m")
        raise ValueError("secret")

    async with channels(serve) as (asking, _):
        with pytest.raises(ModelNotReadyError) as typed:
            await asking.call("Typed")
        assert typed.value.context == {"model": "m"}
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        with pytest.raises(InternalError) as defect:
            await asking.call("Defect")
    assert "secret" not in str(defect.value)


async def test_a_side_that_serves_nothing_refuses() -> None:
    """Requests to a side without `serve` are refused by type."""
    async with channels() as (asking, _):
        with pytest.raises(InvalidRequestError):
            await asking.call("Anything")


async def test_cancelling_a_call_cancels_the_work_at_the_peer() -> None:
    """The peer's task ends when the caller is cancelled."""
    started, ended = asyncio.Event(), asyncio.Event()

    async def serve(request: Frame) -> Tree:
        started.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    async with channels(serve) as (asking, _):
        call = asyncio.create_task(asking.call("Long"))
        await started.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await ended.wait()


async def test_a_deadline_ends_the_call_and_the_work() -> None:
    """A passed deadline is typed at the caller and cancels the peer."""
    started, ended = asyncio.Event(), asyncio.Event()

    async def serve(request: Frame) -> Tree:
        assert request.deadline_seconds == 0.05
        started.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    async with channels(serve) as (asking, serving):
        with pytest.raises(DeadlinePassedError):
            await asking.call("Long", deadline_seconds=0.05)
        await serving.ping(HANG_SECONDS)
        if started.is_set():  # on a machine that stood still, the cancel comes before the work began
            await ended.wait()


async def test_a_closed_peer_fails_all_calls() -> None:
    """Waiting calls and later ones get the error for a lost peer."""

    async def serve(request: Frame) -> Tree:
        await asyncio.sleep(3600)

    async with channels(serve) as (asking, serving):
        calls = [asyncio.create_task(asking.call("Long")) for _ in range(3)]
        await asyncio.sleep(0)
        await serving.close()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [EngineLostError] * 3
        with pytest.raises(EngineLostError):
            await asking.call("Long")
        await asking.closed()
        assert not asking.alive


async def test_garbage_from_the_peer_ends_the_channel() -> None:
    """A peer that speaks another protocol is lost, not waited for."""
    left, right = socket.socketpair()
    asking = Channel(left, lost=EngineLostError)
    await asking.open()
    call = asyncio.create_task(asking.call("X"))
    await asyncio.sleep(0)
    right.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(EngineLostError):
        await call
    right.close()
    await asking.close()


async def test_a_message_above_the_cap_fails_its_own_call_only() -> None:
    """A request or an answer above the cap is typed; the channel stays open."""

    async def serve(request: Frame) -> Tree:
        return "x" * 10_000 if request.command == "Much" else "ok"

    async with channels(serve, FrameLimits(json_bytes=5000)) as (asking, _):
        with pytest.raises(MessageTooLargeError):
            await asking.call("Send", "x" * 10_000)
        with pytest.raises(MessageTooLargeError):
            await asking.call("Much")
        assert (await asking.call("Little")).body == "ok"


async def test_a_ping_is_answered() -> None:
    """Either side answers pings without `serve`; a dead peer is a typed error."""
    async with channels() as (asking, serving):
        await asking.ping(HANG_SECONDS)
        await serving.ping(HANG_SECONDS)
        await serving.close()
        with pytest.raises(EngineLostError):
            await asking.ping(HANG_SECONDS)


# --- the blocking side ---------------------------------------------------------------------------


@asynccontextmanager
async def worker(work: Callable[[BlockingChannel, Frame], Tree], serve: Any = None) -> AsyncIterator[Channel]:
    """An asyncio channel whose peer is a plain thread that answers each request by `work`."""
    left, right = socket.socketpair()

    def run() -> None:
        blocking = BlockingChannel(right)
        while (request := blocking.next_request()) is not None:
            try:
                blocking.reply(request.id, work(blocking, request))
            except CancelledByCallerError as error:
                blocking.fail(request.id, error)
            except EngineLostError:
                break
        blocking.close()

    thread = threading.Thread(target=run)
    thread.start()
    channel = Channel(left, lost=EngineLostError, serve=serve)
    await channel.open()
    try:
        yield channel
    finally:
        await channel.close()
        await asyncio.to_thread(thread.join, HANG_SECONDS)
        assert not thread.is_alive()


async def test_a_blocking_worker_calls_back_while_it_works() -> None:
    """A plain process asks its asker in the middle of a request, and errors cross both ways."""

    async def serve(request: Frame) -> Tree:
        if request.body < 0:
            raise ModelNotReadyError("no")
        return request.body * 2

    def work(channel: BlockingChannel, request: Frame) -> Tree:
        doubled = [channel.call("Double", item).body for item in request.body]
        with pytest.raises(ModelNotReadyError):
            channel.call("Double", -1)
        return doubled

    async with worker(work, serve) as channel:
        assert (await channel.call("All", [1, 2, 3])).body == [2, 4, 6]


async def test_a_blocking_worker_waits_for_its_slow_consumer() -> None:
    """It emits as many events as it has credit for, then waits; every event arrives in order."""
    emitted = 0

    def work(channel: BlockingChannel, request: Frame) -> Tree:
        nonlocal emitted
        for index in range(100):
            channel.emit(request.id, index)
            emitted = index + 1
        return "done"

    release, seen = asyncio.Event(), []

    async def consume(frame: Frame) -> None:
        seen.append(frame.body)
        await release.wait()

    async with worker(work) as channel:
        call = asyncio.create_task(channel.call("Stream", on_event=consume))
        while emitted < EVENT_CREDIT:
            await asyncio.sleep(0.001)
        await channel.ping(HANG_SECONDS)
        assert (emitted, seen) == (EVENT_CREDIT, [0])
        release.set()
        assert (await call).body == "done"
    assert seen == list(range(100))


async def test_a_blocking_worker_sees_a_cancel_and_goes_on() -> None:
    """A cancel surfaces where the worker next talks; the next request is answered."""

    async def serve(request: Frame) -> Tree:
        asked.set()
        return None

    def work(channel: BlockingChannel, request: Frame) -> Tree:
        while request.command == "Long":
            channel.call("Again")
        return "ok"

    asked = asyncio.Event()
    async with worker(work, serve) as channel:
        call = asyncio.create_task(channel.call("Long"))
        await asked.wait()
        call.cancel()
        assert (await channel.call("Short")).body == "ok"


async def test_a_blocking_worker_ends_when_its_asker_is_gone() -> None:
    """Closing the asking side ends the worker's calls and its loop (the thread is joined)."""

    async def serve(request: Frame) -> Tree:
        await asyncio.sleep(3600)

    async with worker(lambda channel, request: channel.call("Never").body, serve) as channel:
        call = asyncio.create_task(channel.call("Work"))
        await asyncio.sleep(0.05)
        await channel.close()
        with pytest.raises(EngineLostError):
            await call


def test_the_proxies_never_import_torch() -> None:
    """Nothing in `trephine.ipc` loads torch, transformers or grpc."""
    script = (
        "import sys, importlib, pkgutil, trephine.ipc\n"
        "for module in pkgutil.iter_modules(trephine.ipc.__path__, 'trephine.ipc.'):\n"
        "    importlib.import_module(module.name)\n"
        "print([name for name in ('torch', 'transformers', 'grpc', 'numpy') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
