"""Who may use an engine now: bounded work in flight, a bounded queue, and a memory budget."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from trephine.app.jobs.costs import Cost
from trephine.domain.errors import OverBudgetError, QueueFullError


class Admission:
    """The gate in front of one engine, first come first served.

    Args:
        memory_budget_bytes: What one command may take beyond the loaded model; None: no bound.
        tokens_in_flight: Commands run side by side up to this many predicted tokens; a single larger
            one runs alone.
        queue: How many may wait.
    """

    def __init__(
        self, *, memory_budget_bytes: int | None = None, tokens_in_flight: int = 65_536, queue: int = 64
    ) -> None:
        self._memory_budget = memory_budget_bytes
        self._room = tokens_in_flight
        self._queue_limit = queue
        self._in_flight = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def check(self, cost: Cost) -> None:
        """Refuse what can never run.

        Raises:
            OverBudgetError: If the predicted memory exceeds the budget.
        """
        if self._memory_budget is not None and cost.memory_bytes > self._memory_budget:
            raise OverBudgetError(
                f"this needs about {cost.memory_bytes >> 20} MiB and the budget is "
                f"{self._memory_budget >> 20} MiB; ask for fewer rows, tokens or nodes",
                needed_bytes=cost.memory_bytes,
                budget_bytes=self._memory_budget,
            )

    @asynccontextmanager
    async def admit(self, cost: Cost) -> AsyncIterator[None]:
        """Hold a place while a command runs. Cheap commands never wait and are never refused.

        Raises:
            OverBudgetError: If the predicted memory exceeds the budget; nothing was done.
            QueueFullError: If too many wait already.
        """
        self.check(cost)
        if cost.tokens == 0:
            yield
            return
        tokens = min(cost.tokens, self._room)
        await self._enter(tokens)
        try:
            yield
        finally:
            self._in_flight -= tokens
            self._wake()

    async def _enter(self, tokens: int) -> None:
        if not self._waiting and self._in_flight + tokens <= self._room:
            self._in_flight += tokens
            return
        if len(self._waiting) >= self._queue_limit:
            raise QueueFullError(
                f"{len(self._waiting)} calls wait for this model already; try again in a moment",
                waiting=len(self._waiting),
            )
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((tokens, place))
        try:
            await place
        except asyncio.CancelledError:
            self._abandon(tokens, place)
            raise

    def _abandon(self, tokens: int, place: asyncio.Future[None]) -> None:
        if place.done() and not place.cancelled():
            self._in_flight -= tokens
        else:
            self._waiting = deque(entry for entry in self._waiting if entry[1] is not place)
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self._in_flight + self._waiting[0][0] <= self._room:
            tokens, place = self._waiting.popleft()
            if not place.done():
                self._in_flight += tokens
                place.set_result(None)
