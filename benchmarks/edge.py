"""What the edge costs, side by side in one run on one machine: `python -m benchmarks.edge`.

The same command is timed three ways, in turn: as a call in this process, through an engine process, and
through a real server with the Python client. Its model is tiny, so that what is between the caller and
the work is what shows. Health is asked while a real model's circuit is discovered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import platformdirs
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

# The tiny model belongs to the tests.
from tests.builders import tiny_folder  # noqa: TID251
from trephine.client import Model, Trephine, connect
from trephine.domain.commands import Command
from trephine.domain.generation import Generate, Row
from trephine.domain.models import LoadModel, ModelSource
from trephine.domain.tokens import Tokenize
from trephine.engine.models import loading, text
from trephine.engine.models.session import Session
from trephine.engine.runs import generation
from trephine.ipc.engine_proxy import EngineProxy, SubprocessEngineLauncher

PROMPT = " When Mary and John went to the store John gave a drink to"
REAL_PROMPT = "When Mary and John went to the store, John gave a drink to"
TOKENS = 128
ROUNDS = 5


@dataclass
class Timings:
    """Seconds of one way to do one thing."""

    name: str
    seconds: list[float] = field(default_factory=list)

    def measure(self, call: Callable[[], object], repeats: int) -> None:
        """Time a call again and again."""
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            self.seconds.append(time.perf_counter() - start)

    def quantile(self, share: float) -> float:
        """Milliseconds that this share of the calls stays under."""
        ordered = sorted(self.seconds)
        return 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    @property
    def median(self) -> float:
        """Milliseconds."""
        return 1e3 * statistics.median(self.seconds)


class InProcess:
    """The engine's handlers, called in this process."""

    def __init__(self, folder: Path) -> None:
        self._session = Session()
        self._drain(loading.HANDLERS, LoadModel(source=ModelSource(name="tiny", folder=str(folder))))

    def tokenize(self) -> Any:
        """One short call."""
        return self._drain(text.HANDLERS, Tokenize(text=PROMPT))

    def generate(self) -> Any:
        """One generation."""
        return self._drain(generation.HANDLERS, generate_command())

    def _drain(self, handlers: Any, command: Command[Any, Any]) -> Any:
        work: Generator[Any, None, Any] = handlers[type(command)](self._session, command)
        while True:
            try:
                with torch.inference_mode():
                    next(work)
            except StopIteration as stop:
                return stop.value


class OverIpc:
    """An engine process, called through its proxy."""

    def __init__(self, folder: Path) -> None:
        self._runner = asyncio.Runner()
        self._engine: EngineProxy = self._runner.run(SubprocessEngineLauncher(threads=1).launch())
        source = ModelSource(name="tiny", folder=str(folder))
        self._runner.run(self._engine.run(LoadModel(source=source)))

    def tokenize(self) -> Any:
        """One short call."""
        return self._runner.run(self._engine.run(Tokenize(text=PROMPT)))

    def generate(self) -> Any:
        """One generation, every event taken."""

        async def take(event: object) -> None:
            return None

        return self._runner.run(self._engine.run(generate_command(), on_event=take))

    def close(self) -> None:
        """End the engine."""
        self._runner.run(self._engine.close())
        self._runner.close()


def bare_stream(messages: int = 2000) -> Timings:
    """Stream through an engine process whose handler does no work: the transport alone, per message."""
    root = str(Path(__file__).resolve().parents[1])
    launcher = SubprocessEngineLauncher(
        handlers="tests.fakes.handlers:HANDLERS", environment={"PYTHONPATH": root}
    )
    timings = Timings("engine process, no work")

    async def take(event: object) -> None:
        return None

    async def stream() -> None:
        engine = await launcher.launch()
        command = Generate(rows=(Row(prompt=PROMPT),), max_new_tokens=messages)
        for _ in range(ROUNDS):
            start = time.perf_counter()
            await engine.run(command, on_event=take)
            timings.seconds.append((time.perf_counter() - start) / messages)
        await engine.close()

    asyncio.run(stream())
    return timings


def generate_command() -> Generate:
    """The generation that is timed."""
    return Generate(rows=(Row(prompt=PROMPT),), max_new_tokens=TOKENS)


def compare(ways: list[Timings], calls: list[Callable[[], object]], repeats: int) -> None:
    """Time several ways to do the same in turn, so that the machine's moods hit all of them."""
    for way, call in zip(ways, calls, strict=True):
        Timings(way.name).measure(call, 5)
    for _ in range(ROUNDS):
        for way, call in zip(ways, calls, strict=True):
            way.measure(call, repeats)


@contextmanager
def health_stub(state: Path) -> Iterator[Callable[[], object]]:
    """A call of the standard health service of the state folder's server."""
    address = json.loads((state / "server.json").read_text(encoding="utf-8"))["address"]
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        yield lambda: stub.Check(health_pb2.HealthCheckRequest(), timeout=60)


def health_under_load(model: Model, check: Callable[[], object], timings: Timings) -> int:
    """Ask for health as long as a discovery runs; return how often it answered."""
    operation = model.start_discover(REAL_PROMPT, target=" Mary", against=" John")
    while not operation.done:
        timings.measure(check, 20)
        time.sleep(0.02)
        operation.refresh()
    return len(timings.seconds)


def report(title: str, rows: list[Timings]) -> None:
    """Print a table; the first row is what the others are compared with."""
    print(f"\n{title}")
    print(f"  {'':34} {'p50 ms':>9} {'p99 ms':>9} {'over first':>11} {'ratio':>7}   n")
    for row in rows:
        over, ratio = row.median - rows[0].median, row.median / rows[0].median
        print(
            f"  {row.name:34} {row.median:9.3f} {row.quantile(0.99):9.3f} {over:11.3f} {ratio:7.2f}"
            f"   {len(row.seconds)}"
        )


def measure_calls(trephine: Trephine, folder: Path, repeats: int) -> None:
    """Unary calls and streams on the tiny model."""
    here, there, model = InProcess(folder), OverIpc(folder), trephine.load_model(folder, name="tiny")
    names = ("call in process", "engine process", "server and client")
    unary = [Timings(name) for name in names]
    compare(unary, [here.tokenize, there.tokenize, lambda: model.tokenize(PROMPT)], repeats)
    report("Tokenize, unary", unary)
    print(f"  RPC over the engine process: {unary[2].median - unary[1].median:.3f} ms p50 (target <= 1)")
    front = Timings("GetModel, no engine in it")
    compare([front], [lambda: trephine.models.get(model.name)], repeats)
    report("A call that the front answers itself", [front])
    streams = [Timings(name) for name in names]
    tokens = len(here.generate().completions[0].token_ids)
    calls = [here.generate, there.generate, lambda: model.generate(PROMPT, max_new_tokens=TOKENS).result()]
    compare(streams, calls, max(1, repeats // 20))
    report(f"Generate, {tokens} messages of a token each", streams)
    for way in streams[1:]:
        print(f"  {way.name}: {(way.median - streams[0].median) / tokens:.3f} ms per message over in process")
    print("  the work itself slows down, too, where caller and engine share few cores; the transport alone:")
    report("One message of a stream whose work is nothing", [bare_stream()])
    there.close()


def measure_health(trephine: Trephine, state: Path, real: Path | None) -> None:
    """The standard health check, idle and while a real circuit is discovered."""
    with health_stub(state) as check:
        idle, busy = Timings("idle"), Timings("during a discovery")
        compare([idle], [check], 40)
        if real is None:
            print("\nhealth is measured idle only: run `trephine models fetch smollm2` first")
        else:
            health_under_load(trephine.load_model("smollm2"), check, busy)
        report("Health", [row for row in (idle, busy) if row.seconds])
        if busy.seconds:
            print(f"  under load: p99 {busy.quantile(0.99):.1f} ms (target < 50)")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.edge", description=__doc__)
    parser.add_argument("--repeats", type=int, default=100, help="calls of a round; there are five rounds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cache = Path(os.environ.get("TREPHINE_CACHE") or platformdirs.user_cache_dir("trephine"))
    real = cache / "models" / "smollm2"
    with tempfile.TemporaryDirectory() as scratch:
        folder = tiny_folder("llama", Path(scratch) / "tiny")
        state = Path(scratch) / "state"
        with connect(state=state) as trephine:
            measure_calls(trephine, folder, options.repeats)
            measure_health(trephine, state, real if (real / "config.json").is_file() else None)


if __name__ == "__main__":
    main()
