"""A real engine process with its real handlers, on a tiny model and on the real one."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from tests.builders import tiny_folder
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuits import DiscoverCircuit
from trephine.domain.commands import Progress
from trephine.domain.errors import EngineLostError, ModelNotReadyError, PromptTooLongError
from trephine.domain.generation import Generate, Row, TokenEvent
from trephine.domain.interventions import Ablate, FeatureTarget, Intervention
from trephine.domain.models import AskStatus, DescribeCapabilities, LoadModel, ModelInfo, ModelSource
from trephine.domain.sites import FeatureRef
from trephine.domain.tokens import ResolveTarget, Tokenize
from trephine.ipc.channel import EVENT_CREDIT
from trephine.ipc.engine_proxy import EngineProxy, SubprocessEngineLauncher

PROMPT = " When Mary and John went to the store John gave a drink to"
REAL_PROMPT = "When Mary and John went to the store, John gave a drink to"

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="module")]


@asynccontextmanager
async def launched() -> AsyncIterator[EngineProxy]:
    """An engine process of its own."""
    engine = await SubprocessEngineLauncher(threads=1).launch()
    try:
        yield engine
    finally:
        await engine.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder: Path) -> AsyncIterator[EngineProxy]:
    """One engine with the tiny model, which no test here leaves changed: starting one takes seconds."""
    async with launched() as engine:
        await load(engine, folder)
        yield engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder("llama", tmp_path_factory.mktemp("models") / "tiny")


async def load(engine: EngineProxy, folder: Path) -> tuple[ModelInfo, list[Progress]]:
    progress: list[Progress] = []

    async def note(event: Progress) -> None:
        progress.append(event)

    source = ModelSource(name="m", folder=str(folder))
    return await engine.run(LoadModel(source=source), on_event=note), progress


def generation(tokens: int, *interventions: Intervention, prompt: str = PROMPT) -> Generate:
    rows = (Row(prompt=prompt), Row(prompt=prompt, interventions=interventions))
    return Generate(rows=rows, max_new_tokens=tokens)


async def test_a_model_is_loaded_and_described(folder: Path) -> None:
    """Before it, a call that needs a model is refused; loading streams its progress; then it can be asked."""
    async with launched() as engine:
        with pytest.raises(ModelNotReadyError):
            await engine.run(Tokenize(text="x"))
        info, progress = await load(engine, folder)
        assert progress
        assert info.weight_hash == info.parent_hash
        capabilities = await engine.run(DescribeCapabilities())
        assert capabilities.model == info


async def test_tokens_stream_and_add_up_to_the_completion(engine: EngineProxy) -> None:
    """Per row the streamed texts join to the completion, plain and intervened side by side."""
    events: list[TokenEvent] = []

    async def take(event: TokenEvent) -> None:
        events.append(event)

    ablation = Intervention(target=FeatureTarget(feature=FeatureRef(layer=0, index=1)), operation=Ablate())
    result = await engine.run(generation(12, ablation), on_event=take)
    for row, completion in enumerate(result.completions):
        assert "".join(event.text for event in events if event.row == row) == completion.text
    assert result.completions[1].applied[0].positions > 0


async def test_a_cancelled_generation_ends_within_a_quantum(engine: EngineProxy) -> None:
    """A cancel in the middle of a stream leaves no job, and few quanta pass until then."""
    third = asyncio.Event()

    async def take(event: TokenEvent) -> None:
        if event.step == 3:
            third.set()

    work = asyncio.create_task(engine.run(generation(200), on_event=take))
    await third.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    after = await engine.run(AskStatus())
    later = await engine.run(AskStatus())
    assert after.jobs == later.jobs == 1
    assert later.quanta - after.quanta == 1


async def test_typed_errors_of_handlers_arrive(engine: EngineProxy) -> None:
    """What a handler refuses is refused at the caller, by the same type."""
    with pytest.raises(PromptTooLongError):
        await engine.run(generation(4, prompt=" the" * 400))


async def discover_and_generate(engine: EngineProxy, command: DiscoverCircuit, prompt: str) -> None:
    """Generate while a discovery runs, and see both end well.

    Its first event begins the generation, and its others are taken after it: the discovery works on
    as far as its credit goes and cannot end before, however slow this machine is.
    """
    begun, answered, events = asyncio.Event(), asyncio.Event(), 0

    async def take(event: Progress) -> None:
        nonlocal events
        events += 1
        begun.set()
        await answered.wait()

    discovery = asyncio.create_task(engine.run(command, on_event=take))
    await begun.wait()
    result = await engine.run(generation(4, prompt=prompt))
    assert len(result.completions) == 2
    assert not discovery.done(), "the short call must not wait for the Operation"
    answered.set()
    circuit = await discovery
    assert circuit.nodes
    assert events > EVENT_CREDIT, "with fewer it could have ended before"


async def test_a_generation_runs_during_a_discovery(engine: EngineProxy) -> None:
    """Interactive work is answered inside a real attribution, on the tiny model."""
    command = DiscoverCircuit(prompt=PROMPT, target=LogitTarget(token=" Mary", against=" John"))
    await discover_and_generate(engine, command, PROMPT)


async def test_an_engine_killed_in_a_discovery_is_lost(folder: Path) -> None:
    """Kill -9 in the middle of an attribution is EngineLostError."""

    async def kill(event: Progress) -> None:
        os.kill(engine.pid, signal.SIGKILL)

    command = DiscoverCircuit(prompt=PROMPT, target=LogitTarget(token=" Mary", against=" John"))
    async with launched() as engine:
        await load(engine, folder)
        with pytest.raises(EngineLostError):
            await engine.run(command, on_event=kill)


@pytest.mark.real
async def test_the_real_model_speaks_during_a_real_discovery(smollm2: Path) -> None:
    """SmolLM2 answers Paris, and answers while its own circuit is discovered."""
    async with launched() as engine:
        info, _ = await load(engine, smollm2)
        assert (info.n_layers, info.d_model) == (30, 576)
        assert (await engine.run(ResolveTarget(text=" Mary"))).display == " Mary"
        result = await engine.run(Generate(rows=(Row(prompt="The capital of France is"),), max_new_tokens=1))
        assert result.completions[0].text == " Paris"
        command = DiscoverCircuit(
            prompt=REAL_PROMPT,
            target=LogitTarget(token=" Mary", against=" John"),
            max_feature_nodes=128,
            verify_nodes=128,
        )
        await discover_and_generate(engine, command, REAL_PROMPT)
        status = await engine.run(AskStatus())
        assert status.longest_quantum_seconds < 60
