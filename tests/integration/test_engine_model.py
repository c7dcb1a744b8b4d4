"""A real engine process with its real handlers, on a tiny model and on the real one."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

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
from trephine.ipc.engine_proxy import EngineProxy, SubprocessEngineLauncher

HANG_SECONDS = 120.0
PROMPT = " When Mary and John went to the store John gave a drink to"
REAL_PROMPT = "When Mary and John went to the store, John gave a drink to"

pytestmark = pytest.mark.integration


@pytest.fixture
async def engine() -> AsyncIterator[EngineProxy]:
    engine = await SubprocessEngineLauncher(threads=1).launch()
    try:
        async with asyncio.timeout(HANG_SECONDS):
            yield engine
    finally:
        await engine.close()


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


async def test_a_model_is_loaded_and_described(engine: EngineProxy, folder: Path) -> None:
    """Loading streams its progress; what was loaded can then be asked for."""
    info, progress = await load(engine, folder)
    assert progress
    assert info.weight_hash == info.parent_hash
    capabilities = await engine.run(DescribeCapabilities())
    assert capabilities.model == info


async def test_before_a_model_is_loaded_everything_else_says_so(engine: EngineProxy) -> None:
    """A call that needs a model is a typed refusal in a fresh engine."""
    with pytest.raises(ModelNotReadyError):
        await engine.run(Tokenize(text="x"))


async def test_tokens_stream_and_add_up_to_the_completion(engine: EngineProxy, folder: Path) -> None:
    """Per row the streamed texts join to the completion, plain and intervened side by side."""
    await load(engine, folder)
    events: list[TokenEvent] = []

    async def take(event: TokenEvent) -> None:
        events.append(event)

    ablation = Intervention(target=FeatureTarget(feature=FeatureRef(layer=0, index=1)), operation=Ablate())
    result = await engine.run(generation(12, ablation), on_event=take)
    for row, completion in enumerate(result.completions):
        assert "".join(event.text for event in events if event.row == row) == completion.text
    assert result.completions[1].applied[0].positions > 0


async def test_a_cancelled_generation_ends_within_a_quantum(engine: EngineProxy, folder: Path) -> None:
    """A cancel in the middle of a stream leaves no job, and few quanta pass until then."""
    await load(engine, folder)
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


async def test_typed_errors_of_handlers_arrive(engine: EngineProxy, folder: Path) -> None:
    """What a handler refuses is refused at the caller, by the same type."""
    await load(engine, folder)
    with pytest.raises(PromptTooLongError):
        await engine.run(generation(4, prompt=" the" * 400))


async def discover_and_generate(engine: EngineProxy, command: DiscoverCircuit, prompt: str) -> None:
    """Generate while a discovery runs, and see both end well."""
    discovery = asyncio.create_task(engine.run(command))
    while (await engine.run(AskStatus())).jobs < 2:
        assert not discovery.done()
    result = await engine.run(generation(4, prompt=prompt))
    assert len(result.completions) == 2
    assert not discovery.done(), "the short call must not wait for the Operation"
    circuit = await discovery
    assert circuit.nodes


async def test_a_generation_runs_during_a_discovery(engine: EngineProxy, folder: Path) -> None:
    """Interactive work is answered inside a real attribution, on the tiny model."""
    await load(engine, folder)
    command = DiscoverCircuit(prompt=PROMPT, target=LogitTarget(token=" Mary", against=" John"))
    await discover_and_generate(engine, command, PROMPT)


async def test_an_engine_killed_in_a_discovery_is_lost(engine: EngineProxy, folder: Path) -> None:
    """Kill -9 in the middle of an attribution is EngineLostError."""
    await load(engine, folder)
    command = DiscoverCircuit(prompt=PROMPT, target=LogitTarget(token=" Mary", against=" John"))
    work = asyncio.create_task(engine.run(command))
    while (await engine.run(AskStatus())).jobs < 2:
        assert not work.done()
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineLostError):
        await work


@pytest.mark.real
async def test_the_real_model_speaks_during_a_real_discovery(engine: EngineProxy, smollm2: Path) -> None:
    """SmolLM2 answers Paris, and answers while its own circuit is discovered."""
    info, _ = await load(engine, smollm2)
    assert (info.n_layers, info.d_model) == (30, 576)
    assert (await engine.run(ResolveTarget(text=" Mary"))).display == " Mary"
    result = await engine.run(Generate(rows=(Row(prompt="The capital of France is"),), max_new_tokens=1))
    assert result.completions[0].text == " Paris"
    command = DiscoverCircuit(
        prompt=REAL_PROMPT,
        target=LogitTarget(token=" Mary", against=" John"),
        max_feature_nodes=64,
        verify_nodes=0,
    )
    await discover_and_generate(engine, command, REAL_PROMPT)
    status = await engine.run(AskStatus())
    assert status.longest_quantum_seconds < 60
