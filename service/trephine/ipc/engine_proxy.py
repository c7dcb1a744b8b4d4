"""The `Engine` port over a child process (DESIGN 5.10). Imports no torch, blocks no event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from trephine.domain.commands import Command
from trephine.domain.errors import EngineLostError, TrephineError
from trephine.ipc import codec
from trephine.ipc.channel import LARGE_JSON_BYTES, Channel, OnEvent
from trephine.ipc.frames import Frame
from trephine.ipc.process import Child, LogSink, log_record

ResultT = TypeVar("ResultT")
EventT = TypeVar("EventT")
ValueT = TypeVar("ValueT")


def _lost(why: str) -> TrephineError:
    return EngineLostError(f"the engine was lost ({why}); the call can be repeated once it is back")


class EngineProxy:
    """An engine in a process of its own. Make one with `SubprocessEngineLauncher.launch`."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._channel = Channel(child.socket, lost=_lost)
        self._ending: asyncio.Task[None] | None = None

    async def open(self, timeout_seconds: float) -> None:
        """Connect, and wait until the engine's loop answers; torch may still be loading then.

        Raises:
            EngineLostError: If it does not answer in time.
        """
        await self._channel.open()
        self._ending = asyncio.create_task(self._end_with_channel(), name="engine-end")
        try:
            await self._channel.ping(timeout_seconds)
        except TrephineError as error:
            await self.close()
            raise EngineLostError("the engine did not come up; its log says why") from error
        except asyncio.CancelledError:
            await self.close()
            raise

    async def run(
        self,
        command: Command[ResultT, EventT],
        *,
        on_event: Callable[[EventT], Awaitable[None]] | None = None,
        deadline_seconds: float | None = None,
    ) -> ResultT:
        """Run a command in the engine; see `trephine.domain.ports.Engine.run`."""
        frame = await self._channel.call(
            type(command).__name__,
            codec.to_tree(command),
            on_event=None if on_event is None else _decoding(command.event_type(), on_event),
            deadline_seconds=deadline_seconds,
        )
        return await _decode(command.result_type(), frame)

    @property
    def alive(self) -> bool:
        """True while the process runs and its socket is open."""
        return self._channel.alive and self._child.alive

    @property
    def pid(self) -> int:
        """Process id of the engine."""
        return self._child.pid

    async def close(self) -> None:
        """End the engine's process group: terminate, and kill after five seconds. May be called again."""
        await self._channel.close()
        if self._ending is not None:
            await asyncio.shield(self._ending)

    async def _end_with_channel(self) -> None:
        """Once its socket is closed an engine is of no use: end it and whatever it started."""
        await self._channel.closed()
        await self._child.stop()


def _decoding(kind: type[ValueT], consume: Callable[[ValueT], Awaitable[None]]) -> OnEvent:
    async def on_event(frame: Frame) -> None:
        await consume(await _decode(kind, frame))

    return on_event


async def _decode(kind: type[ValueT], frame: Frame) -> ValueT:
    if frame.json_bytes > LARGE_JSON_BYTES:
        return await asyncio.to_thread(codec.from_tree, kind, frame.body)
    return codec.from_tree(kind, frame.body)


class SubprocessEngineLauncher:
    """Starts engines as `python -m trephine.engine`.

    Args:
        threads: Compute threads of each engine; None leaves the choice to torch.
        sink: Takes the engines' log records.
        environment: Further environment variables.
        start_seconds: How long an interpreter may take to come up.
        handlers: `MODULE:ATTRIBUTE` of a mapping to serve instead of the engine's own, for tests.
    """

    def __init__(
        self,
        *,
        threads: int | None = None,
        sink: LogSink = log_record,
        environment: Mapping[str, str] | None = None,
        start_seconds: float = 60.0,
        handlers: str | None = None,
    ) -> None:
        self._sink = sink
        self._start_seconds = start_seconds
        self._environment = dict(environment or {})
        self._arguments: list[str] = []
        if threads is not None:
            self._arguments += ["--threads", str(threads)]
        if handlers is not None:
            self._arguments += ["--handlers", handlers]

    async def launch(self) -> EngineProxy:
        """Start a fresh engine without a model.

        Raises:
            EngineLostError: If it does not come up.
        """
        try:
            child = await Child.start(
                "trephine.engine", self._arguments, sink=self._sink, environment=self._environment
            )
        except OSError as error:
            raise EngineLostError(f"no engine could be started: {error.strerror}") from error
        engine = EngineProxy(child)
        await engine.open(self._start_seconds)
        return engine
