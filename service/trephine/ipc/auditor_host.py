"""Runs auditors in a process of their own and believes nothing that comes back until it is checked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
from pydantic import TypeAdapter, ValidationError

from trephine.domain.commands import Progress
from trephine.domain.errors import (
    AuditorFailedError,
    AuditorNotFoundError,
    EngineLostError,
    InvalidRequestError,
    PromptTooLongError,
    TrephineError,
)
from trephine.domain.findings import AuditorInfo, AuditOutcome, AuditSpec
from trephine.domain.ports import Engine
from trephine.ipc import codec
from trephine.ipc.auditor_process import AuditorProcess
from trephine.ipc.channel import Channel
from trephine.ipc.frames import Frame, FrameLimits, Tree
from trephine.ipc.outcome_policy import require_sound
from trephine.ipc.subject import SUBJECT_COMMANDS

LIST_AUDITORS = "ListAuditors"
DESCRIBE_AUDITOR = "DescribeAuditor"
RUN_AUDITOR = "RunAuditor"

AUDITOR_LIMITS = FrameLimits(json_bytes=16 << 20, total_bytes=64 << 20, attachments=64)
"""What an auditor may send at once: less than our own processes may."""

START_SECONDS = 60.0
"""How long the process may take to come up and load the plugins it is asked about."""

_INFOS = TypeAdapter(tuple[AuditorInfo, ...])


@dataclass(frozen=True, slots=True)
class _Host:
    process: AuditorProcess
    channel: Channel


class SubprocessAuditorHost:
    """The `AuditorHost` port: one fresh `python -m trephine.auditors` for every listing and every audit.

    Args:
        module: What is started; another one only in tests.
        start_seconds: How long it may take to come up.
    """

    def __init__(self, *, module: str = "trephine.auditors", start_seconds: float = START_SECONDS) -> None:
        self._module = module
        self._start_seconds = start_seconds

    async def list_auditors(self) -> tuple[AuditorInfo, ...]:
        """Ask a fresh host process which auditors are installed.

        Raises:
            AuditorFailedError: If one of them cannot be loaded; it is named, not skipped.
        """
        async with self._started(_Answers(None)) as host:
            frame = await self._call(host, LIST_AUDITORS, None, self._start_seconds)
            return _infos(frame.body)

    async def run_audit(
        self, spec: AuditSpec, engine: Engine, *, on_progress: Callable[[Progress], None]
    ) -> AuditOutcome:
        """Run one audit under its time limit, on the model that `engine` hosts.

        Raises:
            AuditorNotFoundError: If no auditor has that name.
            AuditorFailedError: If it raised, hung, died or returned something that is no sound outcome.
            InvalidRequestError: If it refused one of the spec's parameters.
            PromptTooLongError: If what it asks about is longer than the model's context.
            EngineLostError: If the engine ended meanwhile; the audit can be run again.
        """
        answers = _Answers(engine)
        async with self._started(answers) as host:
            described = await self._call(host, DESCRIBE_AUDITOR, spec.auditor, self._start_seconds)
            (auditor,) = _infos([described.body])
            try:
                frame = await self._call(
                    host, RUN_AUDITOR, codec.to_tree(spec), spec.time_limit_seconds, on_progress
                )
            except AuditorFailedError as error:
                raise answers.engine_lost or error from error
            return require_sound(_outcome(frame.body, auditor), auditor)

    @asynccontextmanager
    async def _started(self, answers: _Answers) -> AsyncIterator[_Host]:
        try:
            process = await AuditorProcess.start(self._module)
        except OSError as error:
            raise AuditorFailedError(f"no process for auditors could be started: {error.strerror}") from error
        channel = Channel(process.socket, lost=AuditorFailedError, serve=answers.serve, limits=AUDITOR_LIMITS)
        try:
            await channel.open()
            yield _Host(process, channel)
        finally:
            await asyncio.shield(_end(process, channel))

    async def _call(
        self,
        host: _Host,
        command: str,
        body: Tree,
        seconds: float,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> Frame:
        async def report(frame: Frame) -> None:
            if on_progress is not None:
                on_progress(codec.from_tree(Progress, frame.body))

        try:
            async with asyncio.timeout(seconds):
                return await host.channel.call(command, body, on_event=report)
        except TimeoutError as error:
            raise AuditorFailedError(
                f"the auditor did not end within {seconds:g} seconds and was stopped; allow it more time or "
                "ask for fewer items",
                seconds=seconds,
            ) from error
        except TrephineError as error:
            raise await _judged(error, host) from error


async def _judged(error: TrephineError, host: _Host) -> TrephineError:
    """What a failed call of the auditor's process is called: everything but a refusal is its failure.

    A model whose context is too short for the items is refused too: it is the caller's to choose others.
    """
    if isinstance(error, (AuditorNotFoundError, PromptTooLongError)):
        return error
    if isinstance(error, InvalidRequestError) and str(error.context.get("field", "")).startswith(
        "parameters"
    ):
        return error
    if host.channel.alive:
        return AuditorFailedError(error.message, **error.context)
    status = await host.process.ended(within_seconds=2.0)
    how = error.message if status is None else f"exit status {status}"
    return AuditorFailedError(
        f"the auditor's process ended before it had reported ({how}); its log says more"
    )


async def _end(process: AuditorProcess, channel: Channel) -> None:
    await channel.close()
    await process.kill()
    if process.output.strip():
        structlog.get_logger("trephine.auditor").info(
            "auditor output", pid=process.pid, output=process.output, dropped_bytes=process.dropped_bytes
        )


class _Answers:
    """Answers the calls of one auditor by running allowed commands on its engine, one at a time."""

    def __init__(self, engine: Engine | None) -> None:
        self._engine = engine
        self._turn = asyncio.Lock()
        self.engine_lost: EngineLostError | None = None

    async def serve(self, frame: Frame) -> Tree:
        """Answer one call.

        Raises:
            InvalidRequestError: If the command is not among the read-only ones.
            TrephineError: What the engine raises.
        """
        command = codec.command_from_tree(frame.command, frame.body, SUBJECT_COMMANDS)
        if self._engine is None:
            raise InvalidRequestError("there is no model here: auditors describe themselves without one")
        async with self._turn:
            try:
                return codec.to_tree(await self._engine.run(command))
            except EngineLostError as error:
                self.engine_lost = error
                raise


def _infos(tree: Tree) -> tuple[AuditorInfo, ...]:
    try:
        return _INFOS.validate_python(tree)
    except ValidationError as error:
        raise AuditorFailedError("an auditor describes itself by something that is no AuditorInfo") from error


def _outcome(tree: Tree, auditor: AuditorInfo) -> AuditOutcome:
    try:
        return codec.from_tree(AuditOutcome, tree)
    except TrephineError as error:
        raise AuditorFailedError(
            f"{auditor.name} returned something that is no outcome: {error.message}", auditor=auditor.name
        ) from error
