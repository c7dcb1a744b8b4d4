"""Ports: what the layers need of one another. Siblings meet here and never import each other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from trephine.domain.artifacts import ArtifactInfo
from trephine.domain.circuits import Circuit
from trephine.domain.commands import Command, Progress
from trephine.domain.findings import AuditorInfo, AuditOutcome, AuditReport, AuditSpec, ReportFormat
from trephine.domain.generation import Completion, RowScore, Sampling, ScoredRow
from trephine.domain.interventions import Intervention
from trephine.domain.models import ModelInfo
from trephine.domain.sites import FeatureRef
from trephine.domain.tokens import ChatMessage, Token

ResultT = TypeVar("ResultT")
EventT = TypeVar("EventT")


class Engine(Protocol):
    """One process that hosts one model."""

    async def run(
        self,
        command: Command[ResultT, EventT],
        *,
        on_event: Callable[[EventT], Awaitable[None]] | None = None,
        deadline_seconds: float | None = None,
    ) -> ResultT:
        """Run a command; stream its events in order; return its result.

        Cancelling the awaiting task ends the work within one quantum. Events wait for `on_event`:
        a slow consumer slows its own command, nobody else's.

        Raises:
            TrephineError: Whatever the command raised, rebuilt.
            EngineLostError: If the process ended meanwhile.
            DeadlinePassedError: If the deadline passed first.
        """
        ...

    @property
    def alive(self) -> bool:
        """True while the process runs and its socket is open."""
        ...

    @property
    def pid(self) -> int:
        """Process id, for faults tests and logs."""
        ...

    async def close(self) -> None:
        """End the process and everything it started."""
        ...


class EngineLauncher(Protocol):
    """Starts engines."""

    async def launch(self) -> Engine:
        """Start a fresh engine without a model.

        Raises:
            EngineLostError: If it does not come up.
        """
        ...


class AuditorHost(Protocol):
    """Runs auditors in a process of their own (DESIGN 5.9)."""

    async def list_auditors(self) -> tuple[AuditorInfo, ...]:
        """Ask a fresh host process which auditors are installed."""
        ...

    async def run_audit(
        self, spec: AuditSpec, engine: Engine, *, on_progress: Callable[[Progress], None]
    ) -> AuditOutcome:
        """Run one audit under its time limit, on the model that `engine` hosts.

        The auditor's process sees an `AuditSubject`; each call of it becomes one command out of
        `trephine.ipc.subject.SUBJECT_COMMANDS`, the read-only ones. Any other is refused.

        Raises:
            AuditorNotFoundError: If no auditor has that name.
            AuditorFailedError: If it raised, hung, died or returned something that is no outcome.
        """
        ...


@runtime_checkable
class AuditSubject(Protocol):
    """The model under audit, read-only, as an auditor sees it. No weights, no paths.

    Every method blocks. Calls are answered by the service over the auditor's socket; each one may
    raise a `TrephineError`.
    """

    def describe(self) -> ModelInfo:
        """What the model is."""
        ...

    def tokenize(self, text: str) -> tuple[Token, ...]:
        """Split a text as prompts are split."""
        ...

    def render_chat(self, messages: Sequence[ChatMessage]) -> str:
        """Apply the chat template, ending where the assistant speaks."""
        ...

    def sample(
        self, prompts: Sequence[str], *, max_new_tokens: int, sampling: Sampling
    ) -> tuple[Completion, ...]:
        """Continue every prompt; any number of prompts, batched behind the scenes."""
        ...

    def score(self, rows: Sequence[ScoredRow]) -> tuple[RowScore, ...]:
        """Log-probabilities of continuations; any number of rows."""
        ...

    def activations(self, text: str, features: Sequence[FeatureRef]) -> tuple[tuple[float, ...], ...]:
        """Per feature its activation at every position of the text."""
        ...

    def top_features(self, text: str, *, count: int) -> tuple[tuple[FeatureRef, int, float], ...]:
        """The strongest (feature, position, activation x decoder norm) at positions >= 1."""
        ...

    def attribute(self, prompt: str, target: str, against: str | None) -> Circuit:
        """Discover a circuit."""
        ...

    def effect_of(
        self, prompt: str, target: str, against: str | None, interventions: Sequence[Intervention]
    ) -> float:
        """Change of the target's logit (difference) at the last position, in logits."""
        ...


class AuditContext(Protocol):
    """What an auditor is given beside its subject."""

    @property
    def spec(self) -> AuditSpec:
        """The request."""
        ...

    def progress(self, stage: str, done: int, total: int) -> None:
        """Report progress."""
        ...


@runtime_checkable
class Auditor(Protocol):
    """A plugin. Registered under the entry-point group `trephine.auditors` as a class without arguments."""

    def info(self) -> AuditorInfo:
        """Who it is; cheap, no heavy import."""
        ...

    def run(self, subject: AuditSubject, context: AuditContext) -> AuditOutcome:
        """Carry out the audit. Whatever it raises is an error of the audit, never a pass."""
        ...


class ArtifactStore(Protocol):
    """Immutable bytes, addressed by content."""

    async def put(self, data: bytes, *, media_type: str) -> ArtifactInfo:
        """Store bytes; storing them again is no error."""
        ...

    async def put_stream(
        self, chunks: AsyncIterator[bytes], *, media_type: str, expected_sha256: str | None
    ) -> ArtifactInfo:
        """Store a stream through a temporary file and one rename.

        Raises:
            HashMismatchError: If the bytes are not the announced ones; nothing is kept.
        """
        ...

    async def stat(self, sha256: str) -> ArtifactInfo:
        """Describe an artifact.

        Raises:
            ResourceNotFoundError: If there is none.
        """
        ...

    async def read(self, sha256: str) -> bytes:
        """Read a whole (small) artifact."""
        ...

    def chunks(self, sha256: str, *, offset: int = 0, chunk_bytes: int = 1 << 20) -> AsyncIterator[bytes]:
        """Read in pieces."""
        ...


class ReportWriter(Protocol):
    """Turns a finished audit into a file."""

    def write(self, report: AuditReport, format: ReportFormat) -> tuple[bytes, str]:
        """Return the file's bytes and media type."""
        ...
