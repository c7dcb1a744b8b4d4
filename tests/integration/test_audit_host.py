"""The auditor host with an auditor from a separate package, which behaves and misbehaves on request."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import structlog

from tests.fakes.engine import FakeEngine
from trephine.domain.commands import Progress
from trephine.domain.errors import (
    AuditorFailedError,
    AuditorNotFoundError,
    EngineLostError,
    InvalidRequestError,
    PromptTooLongError,
)
from trephine.domain.findings import AuditOutcome, AuditSpec, Verdict
from trephine.domain.generation import Completion, Generate, Generation, RowScore, Score, Scores
from trephine.domain.models import Capabilities, DescribeCapabilities, ModelInfo
from trephine.domain.tokens import Token, Tokenize, Tokens
from trephine.ipc.auditor_host import SubprocessAuditorHost
from trephine.ipc.auditor_process import KEPT_OUTPUT_BYTES

pytestmark = pytest.mark.integration

GUARD = 60.0

PLUGIN = Path(__file__).parent.parent / "plugins" / "trephine-toy-auditor"

MODEL = ModelInfo(
    name="subject", architecture="LlamaForCausalLM", weight_hash="w", parent_hash="w", dtype="float32",
    device="cpu", n_layers=1, n_heads=1, n_kv_heads=1, d_model=8, d_mlp=8, d_vocab=300, context_length=64,
    n_parameters=1, tied_embeddings=False, has_mlp_bias=False, has_chat_template=False, eos_token_ids=(0,),
    bos_token_id=None, memory_bytes=1,
)  # fmt: skip


def fake_engine() -> FakeEngine:
    """An engine that answers what a subject may ask; completions repeat their prompt."""
    return FakeEngine(
        {
            DescribeCapabilities: Capabilities(
                model=MODEL, capabilities=(), max_prompt_tokens=64, max_rows=2, memory_budget_bytes=1
            ),
            Tokenize: lambda command: Tokens(
                tokens=tuple(Token(id=ord(c), raw=c.encode(), display=c) for c in command.text)
            ),
            Generate: lambda command: Generation(
                completions=tuple(
                    Completion(
                        text=row.prompt, token_ids=(1,), finish_reason="stop", applied=(), n_prompt_tokens=1
                    )
                    for row in command.rows
                ),
                model="subject",
                weight_hash="w",
            ),
            Score: lambda command: Scores(
                rows=tuple(
                    RowScore(
                        token_ids=(1,), log_probabilities=(-1.0,), top_token_ids=(1,), kl=(0.0,), applied=()
                    )
                    for _ in command.rows
                ),
                model="subject",
                weight_hash="w",
            ),
        }
    )


@pytest.fixture(scope="session")
def plugin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy plugin, installed by pip into a folder of its own."""
    folder = tmp_path_factory.mktemp("plugins") / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--no-index", "--target", str(folder), str(PLUGIN)], check=True, timeout=120)
    return folder


@pytest.fixture
def host(plugin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> SubprocessAuditorHost:
    """A host whose processes find the plugin."""
    monkeypatch.setenv("PYTHONPATH", str(plugin_folder))
    return SubprocessAuditorHost()


async def run(
    host: SubprocessAuditorHost, behaviour: str, *, seconds: float = 60, engine: FakeEngine | None = None
) -> AuditOutcome:
    """Audit with the toy."""
    spec = AuditSpec(auditor="toy", time_limit_seconds=seconds, parameters={"behave": behaviour})
    return await host.run_audit(spec, engine or fake_engine(), on_progress=lambda progress: None)


def ended(pid: int) -> bool:
    """True once a process runs no more, whether its parent has looked or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def children() -> set[int]:
    """Process ids of everything that this process started and that still runs."""
    return {child.pid for child in psutil.Process().children(recursive=True)}


async def test_installed_plugin_is_listed_beside_our_own(host: SubprocessAuditorHost):
    """Listing names the auditor of the separate package and ours, without a model."""
    names = {info.name for info in await host.list_auditors()}
    assert {"toy", "unfaithful_reasoning"} <= names


@pytest.mark.parametrize(
    ("behaviour", "verdict"),
    [("passes", Verdict.PASS), ("fails", Verdict.FAIL), ("is_inconclusive", Verdict.INCONCLUSIVE)],
)
async def test_sound_outcomes_come_back_unchanged(
    host: SubprocessAuditorHost, behaviour: str, verdict: Verdict
):
    """An outcome that keeps the rules is returned as it was made."""
    assert (await run(host, behaviour)).verdict is verdict


@pytest.mark.parametrize(
    ("behaviour", "says"),
    [
        ("raises", "RuntimeError: the toy is broken"),
        ("raises_unprintably", "its text raised ValueError"),
        ("exits", "SystemExit"),
        ("dies", "exit status 0"),
        ("garbles", "ended before|no frame"),
        ("returns_none", "returned NoneType"),
        ("returns_text", "returned str"),
        ("returns_true", "returned bool"),
        ("returns_wrong_verdict", "no outcome"),
        ("returns_wrong_findings", "no outcome"),
        ("returns_unserialisable", "raised|no outcome"),
        ("passes_without_power", "no figure `power`"),
        ("fails_without_findings", "no finding with a causal effect"),
        ("fails_with_nan_p", "p-value nan"),
    ],
)
async def test_misbehaviour_is_an_error_never_a_pass(host: SubprocessAuditorHost, behaviour: str, says: str):
    """Whatever a plugin does but return an outcome is AuditorFailedError, and it says what happened."""
    with pytest.raises(AuditorFailedError, match=says):
        await run(host, behaviour)


@pytest.mark.parametrize("behaviour", ["hangs", "spins"])
async def test_hanging_ends_at_the_time_limit(host: SubprocessAuditorHost, behaviour: str):
    """A plugin that sleeps or spins is killed at its time limit."""
    before = children()
    async with asyncio.timeout(GUARD):
        with pytest.raises(AuditorFailedError, match="did not end within 1 seconds"):
            await run(host, behaviour, seconds=1)
    assert children() <= before


async def test_what_an_auditor_starts_ends_with_it(host: SubprocessAuditorHost):
    """A child process that a plugin leaves behind is killed with its group."""
    pid = int((await run(host, "leaves_a_child")).why)
    async with asyncio.timeout(GUARD):
        while not ended(pid):
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("behaviour", ["asks_for_loading", "asks_for_export", "asks_for_status"])
async def test_commands_beyond_the_subject_are_refused(host: SubprocessAuditorHost, behaviour: str):
    """A plugin that reaches past its subject is refused before the engine hears of it."""
    engine = fake_engine()
    with pytest.raises(AuditorFailedError, match="there is no command"):
        await run(host, behaviour, engine=engine)
    assert engine.commands == []


async def test_subject_calls_become_engine_commands_in_batches(host: SubprocessAuditorHost):
    """Prompts are batched by length under the engine's cap, and answers come back in the caller's order."""
    engine = fake_engine()
    why = (await run(host, "asks_everything", engine=engine)).why
    assert why == repr(["subject", 9, "a", "b" * 50, "c", 1])
    rows = [
        [row.prompt for row in command.rows] for command in engine.commands if isinstance(command, Generate)
    ]
    assert rows == [["a", "c"], ["b" * 50]]


async def test_an_auditor_sees_no_secrets_and_no_model_paths(
    host: SubprocessAuditorHost, monkeypatch: pytest.MonkeyPatch
):
    """Settings, tokens and paths of the service are not in the auditor's environment."""
    for name in ("TREPHINE_STATE", "TREPHINE_TOKEN", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_MODEL_PATH"):
        monkeypatch.setenv(name, "a secret")
    told = (await run(host, "tells_environment")).why
    assert "a secret" not in told
    assert "TREPHINE_" not in told
    assert os.path.expanduser("~") not in told.partition("HOME=")[2].partition("\n")[0]


async def test_an_auditor_process_loads_no_torch(host: SubprocessAuditorHost):
    """The process of an auditor starts without torch, transformers or grpc."""
    modules = set((await run(host, "tells_modules")).why.split())
    assert not modules & {"torch", "transformers", "grpc", "numpy"}


async def test_output_is_kept_up_to_a_bound(host: SubprocessAuditorHost):
    """A flood of output neither blocks nor fills memory: its end is logged, the rest counted."""
    with structlog.testing.capture_logs() as logs:
        assert (await run(host, "floods")).verdict is Verdict.PASS
    (entry,) = [entry for entry in logs if entry["event"] == "auditor output"]
    assert entry["output"].endswith("the last line\n")
    assert len(entry["output"]) <= KEPT_OUTPUT_BYTES
    assert entry["dropped_bytes"] > 20_000_000


async def test_unknown_auditor_is_not_found(host: SubprocessAuditorHost):
    """An unknown name is its own error, which lists the known ones."""
    with pytest.raises(AuditorNotFoundError, match=r"installed are .*toy"):
        await host.run_audit(AuditSpec(auditor="nobody"), fake_engine(), on_progress=lambda progress: None)


async def test_wrong_parameter_is_the_callers_error(host: SubprocessAuditorHost):
    """A parameter that an auditor refuses is an invalid request that names the field."""
    spec = AuditSpec(auditor="unfaithful_reasoning", parameters={"colour": "red"})
    with pytest.raises(InvalidRequestError, match="colour is unknown") as caught:
        await host.run_audit(spec, fake_engine(), on_progress=lambda progress: None)
    assert caught.value.context["field"] == "parameters.colour"


async def test_an_item_longer_than_the_context_is_the_callers_error(host: SubprocessAuditorHost):
    """It is no failure of the auditor's, and named: by its own auditor as an item, else as a text."""
    engine = fake_engine()
    engine.scripts[Generate] = PromptTooLongError(
        "too many", row=1, field="rows[1].prompt", tokens=70, room=3, limit=64
    )
    with pytest.raises(PromptTooLongError, match=r"^texts\[2\] .*too many") as caught:
        await run(host, "asks_everything", engine=engine)
    assert caught.value.context == {"text": 2, "tokens": 70, "room": 3, "limit": 64}
    spec = AuditSpec(auditor="unfaithful_reasoning", items=2)
    with pytest.raises(
        PromptTooLongError, match=r"^items\[0\] takes 70 tokens and 3 new ones.* 64;"
    ) as caught:
        await host.run_audit(spec, engine, on_progress=lambda progress: None)
    assert caught.value.context["field"] == "parameters.demonstrations"


async def test_losing_the_engine_is_told_apart_from_a_failing_auditor(host: SubprocessAuditorHost):
    """If the engine dies under an audit the error says so, since running it again may help."""
    engine = fake_engine()
    engine.scripts[DescribeCapabilities] = EngineLostError("gone")
    with pytest.raises(EngineLostError, match="gone"):
        await run(host, "asks_everything", engine=engine)


async def test_progress_reaches_the_caller(host: SubprocessAuditorHost):
    """What an auditor reports arrives in order."""
    seen: list[Progress] = []
    await host.run_audit(AuditSpec(auditor="toy"), fake_engine(), on_progress=seen.append)
    assert seen == [Progress(stage="passes", done=1, total=1)]


async def test_plugin_that_cannot_be_imported_is_named_not_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A plugin whose import fails turns listing into an error that names it and its distribution."""
    info = tmp_path / "broken_auditor-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-auditor\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[trephine.auditors]\nbroken = no_such_module:Auditor\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(AuditorFailedError, match=r"'broken' of broken-auditor .*ModuleNotFoundError"):
        await SubprocessAuditorHost().list_auditors()


async def test_killing_the_service_leaves_no_auditor_behind(plugin_folder: Path, tmp_path: Path):
    """With the service killed, a plugin that spins is ended by its own watch on the socket."""
    script = tmp_path / "service.py"
    script.write_text(
        "import asyncio, psutil\n"
        "from tests.integration.test_audit_host import fake_engine\n"
        "from trephine.domain.findings import AuditSpec\n"
        "from trephine.ipc.auditor_host import SubprocessAuditorHost\n"
        "def show(progress):\n"
        "    print(*(child.pid for child in psutil.Process().children()), flush=True)\n"
        "spec = AuditSpec(auditor='toy', time_limit_seconds=300, parameters={'behave': 'spins'})\n"
        "asyncio.run(SubprocessAuditorHost().run_audit(spec, fake_engine(), on_progress=show))\n"
    )
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{plugin_folder}{os.pathsep}{root}"}
    service = subprocess.Popen(
        [sys.executable, str(script)], env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    with service:
        assert service.stdout is not None
        (auditor,) = map(int, (await asyncio.to_thread(service.stdout.readline)).split())
        assert not ended(auditor)
        service.kill()
    async with asyncio.timeout(GUARD):
        while not ended(auditor):
            await asyncio.sleep(0.05)
