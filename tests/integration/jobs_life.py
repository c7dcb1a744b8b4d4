"""One life of a server, to be killed: `python -m tests.integration.jobs_life ROOT DO [COUNT]`.

`hang` starts COUNT discoveries whose engine never answers; `crash` starts one and dies by itself between
publishing the result and telling the job store; `resume` finishes whatever is there. There is no network.
What happens is printed as one JSON object a line. A sentinel file counts how often the engine was asked.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.fakes.engine import Script
from tests.unit.app.house import House, discover_command, house, small_circuit
from trephine.app.jobs.jobs import Jobs
from trephine.app.jobs.requests import DiscoverRequest
from trephine.domain.circuits import DiscoverCircuit
from trephine.domain.commands import Progress

REQUEST = DiscoverRequest(model="tiny", command=discover_command())


def say(**fields: Any) -> None:
    """Print one line."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


async def life(root: Path, do: str, count: int = 1) -> None:
    """Live."""
    asked = root / "asked"

    def discover(_: DiscoverCircuit) -> Any:
        asked.write_text(asked.read_text() + "x" if asked.exists() else "x")
        return small_circuit()

    steps = tuple(Progress(stage="attribution", done=n, total=3) for n in range(3))
    hold = asyncio.Event()
    script = discover if do != "hang" else Script(events=steps, hold=hold, result=discover)
    here = house(
        root,
        {DiscoverCircuit: script},
        jobs=Jobs.sqlite(root / "jobs.sqlite", executor_id="testbed"),
    )
    if do == "crash":
        here.journal.finish = _die  # type: ignore[method-assign]
    await here.models.load(here.models.resolve("tiny"), lambda _: None)
    await here.operations.open()
    if do in {"hang", "crash"}:
        for number in range(count):
            record = await here.operations.start("DiscoverCircuit", REQUEST, request_id=f"r{number}")
            await _until_progress(here, record.id)
        await asyncio.sleep(600)  # until it is killed
    for record in here.operations.list():
        ended = await here.operations.wait(record.id)
        failure = ended.failure.reason if ended.failure else None
        say(id=ended.id, state=ended.state, attempts=ended.attempts, result=ended.result, failure=failure)
    await here.operations.close()
    await here.models.close()


async def _until_progress(here: House, operation_id: str) -> None:
    while here.operations.get(operation_id).progress is None:
        await asyncio.sleep(0.005)
    say(progress=operation_id)


async def _die(*_: Any, **__: Any) -> None:
    os._exit(9)


if __name__ == "__main__":
    asyncio.run(life(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])))
