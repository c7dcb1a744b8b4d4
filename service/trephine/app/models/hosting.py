"""One model's place: its engine, its gate, and how it comes back after a loss."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TypeVar

import structlog

from trephine.app.jobs.admission import Admission
from trephine.app.jobs.costs import predict_beside
from trephine.app.jobs.shelf import Shelf
from trephine.domain.commands import Command, Progress
from trephine.domain.errors import (
    DeadlinePassedError,
    EngineLostError,
    ModelNotReadyError,
    ReplacementNotFoundError,
)
from trephine.domain.models import LoadModel, ModelInfo, ModelSource
from trephine.domain.ports import Engine, EngineLauncher

ResultT = TypeVar("ResultT")
EventT = TypeVar("EventT")
OnProgress = Callable[[Progress], None]

_log = structlog.get_logger("trephine.hosting")


class Berth:
    """Holds the engine of one source. Those who load it at the same time share one load.

    A load ends once the replacement sets on its shelf are beside the model again.
    """

    def __init__(
        self,
        source: ModelSource,
        launcher: EngineLauncher,
        shelf: Shelf,
        *,
        interactive: Admission,
        batch: Admission,
    ) -> None:
        self.source = source
        self.shelf = shelf
        self.interactive = interactive
        self.batch = batch
        self.info: ModelInfo | None = None
        self.engine: Engine | None = None
        self._launcher = launcher
        self._loading: asyncio.Task[ModelInfo] | None = None
        self._listeners: list[OnProgress] = []

    @property
    def loaded(self) -> bool:
        """True while an engine that lives hosts the model."""
        return self.engine is not None and self.engine.alive and self.info is not None

    @property
    def loading(self) -> bool:
        """True while it is being loaded."""
        return self._loading is not None and not self._loading.done()

    async def ready(self, on_progress: OnProgress | None = None) -> tuple[Engine, ModelInfo]:
        """Return the engine, loading the model first if it is not hosted by a living one.

        The load ends when the last of those who wait for it is cancelled.

        Raises:
            TrephineError: Whatever loading raised.
        """
        if not self.loaded:
            await self._join(on_progress or _ignore)
        if self.engine is None or self.info is None:
            raise EngineLostError("the engine was lost right after loading; try again")
        return self.engine, self.info

    async def close(self) -> None:
        """End the load and the engine."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        await self.discard(self.engine)

    async def discard(self, engine: Engine | None) -> None:
        """Give up an engine that was lost or is not wanted any more."""
        if engine is None:
            return
        if self.engine is engine:
            self.engine = None
        await engine.close()

    async def _join(self, on_progress: OnProgress) -> None:
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._load())
        task = self._loading
        self._listeners.append(on_progress)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled() and not _being_cancelled():
                raise ModelNotReadyError("the model was unloaded while it loaded; load it again") from None
            raise
        finally:
            self._listeners.remove(on_progress)
            if not self._listeners and not task.done():
                # Whoever comes now starts a load of their own, and does not join one that ends.
                self._loading = None
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _load(self) -> ModelInfo:
        await self.discard(self.engine)
        engine = await self._launcher.launch()
        try:
            info = await engine.run(LoadModel(source=self.source), on_event=self._tell)
            await self.shelf.restore(engine, self._tell)
        except BaseException:
            await engine.close()
            raise
        if self.info is not None and self.info.weight_hash != info.weight_hash:
            _log.warning("weights_changed", model=self.source.name, now=info.weight_hash)
        self.engine, self.info = engine, info
        return info

    async def _tell(self, progress: Progress) -> None:
        for listener in tuple(self._listeners):
            listener(progress)


class BerthedEngine:
    """The engine that callers are given: it waits its turn, and comes back after a loss.

    Implements the port `trephine.domain.ports.Engine`.
    """

    def __init__(self, berth: Berth) -> None:
        self._berth = berth

    async def run(
        self,
        command: Command[ResultT, EventT],
        *,
        on_event: Callable[[EventT], Awaitable[None]] | None = None,
        deadline_seconds: float | None = None,
    ) -> ResultT:
        """Run a command once its predicted cost is admitted.

        Raises:
            OverBudgetError: If it can never be admitted; nothing was done.
            QueueFullError: If too many wait already.
            DeadlinePassedError: If the deadline passes, waiting included.
            EngineLostError: If the process ended meanwhile; the next call gets a fresh one.
            TrephineError: Whatever the command raised.
        """
        gate = self._berth.interactive if command.interactive else self._berth.batch
        started = asyncio.get_running_loop().time()
        async with AsyncExitStack() as place:
            try:
                async with asyncio.timeout(deadline_seconds):
                    engine, info = await self._berth.ready()
                    cost = predict_beside(command, info, self._berth.shelf.layers)
                    await place.enter_async_context(gate.admit(cost))
            except TimeoutError:
                raise DeadlinePassedError("the deadline passed while the call waited its turn") from None
            if deadline_seconds is not None:
                deadline_seconds -= asyncio.get_running_loop().time() - started
            try:
                return await engine.run(command, on_event=on_event, deadline_seconds=deadline_seconds)
            except EngineLostError:
                await self._berth.discard(engine)
                raise
            except ReplacementNotFoundError as error:
                raise self._berth.shelf.explained(error) from error

    @property
    def alive(self) -> bool:
        """True while an engine hosts the model; if not, the next command brings it back."""
        return self._berth.loaded

    @property
    def pid(self) -> int:
        """Process id of the engine.

        Raises:
            ModelNotReadyError: If there is none at this moment.
        """
        if self._berth.engine is None:
            raise ModelNotReadyError("the model's engine is not running; the next call starts it")
        return self._berth.engine.pid

    async def close(self) -> None:
        """End the process; the next command starts another."""
        await self._berth.discard(self._berth.engine)


def _ignore(_: Progress) -> None:
    """Nobody listens."""


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
