"""An engine without a model: answers by a script, for tests of `app` and `rpc`.

```python
engine = FakeEngine({
    Tokenize: Tokens(tokens=()),                                  # a result
    Score: OverBudgetError("too many rows"),                      # an error
    ResolveTarget: lambda command: token_of(command.text),        # a result per command
    Generate: Script(events=(event,), result=generation),         # events, then the result
    DiscoverCircuit: Script(events=(step,), hold=asyncio.Event(), result=circuit),   # waits in between
})
```
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trephine.domain.commands import Command
from trephine.domain.errors import DeadlinePassedError, EngineLostError, InternalError

OnEvent = Callable[[Any], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Script:
    """What happens when a command runs: events, then a wait for `hold`, then the result or error."""

    result: Any
    events: tuple[Any, ...] = ()
    hold: asyncio.Event | None = None


class FakeEngine:
    """Implements the `Engine` port. `commands` lists what was asked, `cancelled` what was cancelled."""

    def __init__(self, scripts: Mapping[type, Any] | None = None) -> None:
        self.scripts: dict[type, Any] = dict(scripts or {})
        self.commands: list[Command[Any, Any]] = []
        self.cancelled: list[Command[Any, Any]] = []
        self.deadlines: list[float | None] = []
        self._lost = asyncio.Event()

    async def run(
        self,
        command: Command[Any, Any],
        *,
        on_event: Callable[[Any], Awaitable[None]] | None = None,
        deadline_seconds: float | None = None,
    ) -> Any:
        """Play the command's script."""
        self.commands.append(command)
        self.deadlines.append(deadline_seconds)
        if not self.alive:
            raise EngineLostError("the fake engine was lost")
        try:
            async with asyncio.timeout(deadline_seconds):
                return await self._play(command, on_event)
        except TimeoutError as error:
            raise DeadlinePassedError("the deadline of a fake command passed") from error
        except asyncio.CancelledError:
            self.cancelled.append(command)
            raise

    async def _play(
        self, command: Command[Any, Any], on_event: Callable[[Any], Awaitable[None]] | None
    ) -> Any:
        if type(command) not in self.scripts:
            raise InternalError(f"the fake engine has no script for {type(command).__name__}")
        script = self.scripts[type(command)]
        if not isinstance(script, Script):
            script = Script(result=script)
        for event in script.events:
            if on_event is not None:
                await on_event(event)
        if script.hold is not None:
            await self._first(script.hold.wait(), self._lost.wait())
        if not self.alive:
            raise EngineLostError("the fake engine was lost")
        return _result(script.result, command)

    async def _first(self, *waits: Awaitable[Any]) -> None:
        tasks = [asyncio.ensure_future(wait) for wait in waits]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    def lose(self) -> None:
        """End as if the process had been killed: commands that hold raise `EngineLostError`."""
        self._lost.set()

    @property
    def alive(self) -> bool:
        """True until `lose` or `close`."""
        return not self._lost.is_set()

    @property
    def pid(self) -> int:
        """The test's own process id."""
        return os.getpid()

    async def close(self) -> None:
        """End it."""
        self._lost.set()


def _result(result: Any, command: Command[Any, Any]) -> Any:
    if callable(result) and not isinstance(result, type):
        result = result(command)
    if isinstance(result, BaseException):
        raise result
    return result


class FakeLauncher:
    """Implements `EngineLauncher`: hands out the given engines in turn, then raises."""

    def __init__(self, engines: Iterable[FakeEngine]) -> None:
        self._engines = list(engines)
        self.launched: list[FakeEngine] = []

    async def launch(self) -> FakeEngine:
        """Hand out the next engine."""
        if not self._engines:
            raise EngineLostError("the fake launcher has no more engines")
        self.launched.append(self._engines.pop(0))
        return self.launched[-1]
