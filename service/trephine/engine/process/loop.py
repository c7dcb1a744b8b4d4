"""The engine's one loop: between any two quanta it takes requests, cancellations and deadlines (DESIGN 5.10).

Every job is a generator that yields after a bounded quantum. The loop itself knows neither torch nor models:
what it serves is handed in, so that it can be tested by counting.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import structlog

from trephine.domain.errors import (
    CancelledByCallerError,
    DeadlinePassedError,
    QueueFullError,
    TrephineError,
    UnsupportedOptionError,
)
from trephine.engine.models.session import Handler, Session
from trephine.engine.process import failures
from trephine.engine.process.outbox import Outbox
from trephine.engine.process.schedule import Job, Schedule
from trephine.ipc import codec
from trephine.ipc.channel import error_frame
from trephine.ipc.frames import Frame, FrameKind, FrameParser, pack

MAX_JOBS = 256
UNUSABLE = 70
"""Exit status when the engine's own code cannot be imported."""
_READ_BYTES = 1 << 18
_READS_PER_TURN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Equipment:
    """What a loop works with; it is fetched late, because importing torch takes seconds."""

    handlers: Mapping[type, Handler]
    quantum: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Entered around every quantum: `torch.inference_mode`."""


class Loop:
    """Serves one socket until it closes.

    Args:
        sock: Connected to the service; becomes non-blocking.
        equip: Called once, after the first frame was answered.
        session: Handed to every handler.
        log_texts: Whether exception texts, which may hold prompts, go to the log.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        sock: socket.socket,
        equip: Callable[[], Equipment],
        session: Session,
        *,
        log_texts: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._equip = equip
        self._session = session
        self._log_texts = log_texts
        self._clock = clock
        self._log = structlog.get_logger("trephine.engine")
        self._parser = FrameParser()
        self._outbox = Outbox(sock)
        self._schedule = Schedule()
        self._equipment: Equipment | None = None
        self._greeted = False
        self._connected = True
        self._interruptible = False

    def run(self) -> None:
        """Work until the socket closes; then every job is closed, so that its `finally` blocks run."""
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(self._socket, selectors.EVENT_READ)
                while self._exchange(selector):
                    self._pass_deadlines()
                    self._work()
            self._outbox.flush()  # for a peer that only stopped writing
        except ConnectionError:
            self._log.info("connection_lost")
        finally:
            for job in self._schedule:
                self._end(job)

    def leave(self) -> None:
        """End the loop now; for a signal handler. Interrupts a quantum or a wait, never a clean-up."""
        self._connected = False
        if self._interruptible:
            self._interruptible = False
            raise SystemExit(0)

    @contextmanager
    def _may_be_interrupted(self) -> Iterator[None]:
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

    # --- talking ---------------------------------------------------------------------------------

    def _exchange(self, selector: selectors.BaseSelector) -> bool:
        """Write and read; wait only if there is nothing to work on. False once the peer is gone."""
        self._outbox.flush()
        write = selectors.EVENT_WRITE if self._outbox else 0
        selector.modify(self._socket, selectors.EVENT_READ | write)
        with self._may_be_interrupted():
            events = selector.select(self._patience())
        for _, ready in events:
            if ready & selectors.EVENT_READ:
                self._read()
            if ready & selectors.EVENT_WRITE:
                self._outbox.flush()
        return self._connected

    def _patience(self) -> float | None:
        can_work = self._schedule.any_ready or (self._greeted and self._equipment is None)
        if can_work and not self._outbox.full:
            return 0.0
        deadlines = [job.deadline for job in self._schedule if job.deadline is not None]
        return max(0.0, min(deadlines) - self._clock()) if deadlines else None

    def _read(self) -> None:
        for _ in range(_READS_PER_TURN):
            try:
                data = self._socket.recv(_READ_BYTES)
            except (BlockingIOError, InterruptedError):
                return
            if not data:
                self._connected = False
                return
            self._parser.feed(data)
            for frame in self._parser.frames():
                self._take(frame)

    def _take(self, frame: Frame) -> None:
        self._greeted = True
        job = self._schedule.get(frame.id)
        if frame.kind is FrameKind.REQUEST:
            self._accept(frame)
        elif frame.kind is FrameKind.PING:
            self._outbox.put(pack(Frame(kind=FrameKind.PONG, id=frame.id)))
        elif frame.kind is FrameKind.ACK and job is not None:
            job.unacknowledged -= 1
        elif frame.kind is FrameKind.CANCEL and job is not None:
            self._fail(job, CancelledByCallerError(f"{job.command} was cancelled"))

    def _accept(self, frame: Frame) -> None:
        try:
            self._schedule.add(self._job(frame))
            self._session.counters.jobs = len(self._schedule)
        except Exception as error:
            self._send_error(frame.id, frame.command, error)

    def _job(self, frame: Frame) -> Job:
        if len(self._schedule) >= MAX_JOBS or self._schedule.get(frame.id) is not None:
            raise QueueFullError(f"this engine has {len(self._schedule)} unfinished calls; try again later")
        command = codec.command_from_tree(frame.command, frame.body)
        handler = self._equipped().handlers.get(type(command))
        if handler is None:
            raise UnsupportedOptionError(f"this engine does not carry out {frame.command}", field="command")
        work = handler(self._session, command)
        if not isinstance(work, Generator):
            raise TypeError(f"the handler of {frame.command} is no generator function")
        seconds = frame.deadline_seconds
        return Job(
            id=frame.id,
            command=frame.command,
            interactive=command.interactive,
            work=work,
            deadline=None if seconds is None else self._clock() + seconds,
        )

    # --- working ---------------------------------------------------------------------------------

    def _equipped(self) -> Equipment:
        if self._equipment is None:
            try:
                with self._may_be_interrupted():
                    self._equipment = self._equip()
            except Exception as error:
                self._log.error("engine_unusable", **failures.describe(error, with_text=True))
                raise SystemExit(UNUSABLE) from error
        return self._equipment

    def _pass_deadlines(self) -> None:
        now = self._clock()
        for job in self._schedule:
            if job.deadline is not None and now >= job.deadline:
                self._fail(job, DeadlinePassedError(f"the deadline of {job.command} passed"))

    def _work(self) -> None:
        if self._greeted and not self._outbox:
            self._equipped()
        if self._outbox.full or (job := self._schedule.next()) is None:
            return
        started = self._clock()
        try:
            self._quantum(job)
        except Exception as error:
            self._fail(job, error)
            if failures.is_fatal(error):
                raise
        finally:
            counters = self._session.counters
            seconds = self._clock() - started
            counters.longest_quantum_seconds = max(counters.longest_quantum_seconds, seconds)

    def _quantum(self, job: Job) -> None:
        self._session.counters.quanta += 1
        try:
            with self._equipped().quantum(), self._may_be_interrupted():
                event = next(job.work)
        except StopIteration as stop:
            body = codec.to_tree(stop.value)
            self._outbox.put(pack(Frame(kind=FrameKind.RESULT, id=job.id, body=body)))
            self._end(job)
            return
        if event is not None:
            body = codec.to_tree(event)
            self._outbox.put(pack(Frame(kind=FrameKind.EVENT, id=job.id, body=body)))
            job.unacknowledged += 1

    def _fail(self, job: Job, error: Exception) -> None:
        self._end(job)
        self._send_error(job.id, job.command, error)

    def _send_error(self, id: int, command: str, error: Exception) -> None:
        if not isinstance(error, TrephineError):
            fields = failures.describe(error, with_text=self._log_texts)
            self._log.error("command_failed", command=command[:80], **fields)
        self._outbox.put(pack(error_frame(id, failures.typed(error, command))))

    def _end(self, job: Job) -> None:
        """Take a job out and close its generator; a failing clean-up is logged, the loop goes on."""
        self._schedule.remove(job)
        self._session.counters.jobs = len(self._schedule)
        try:
            with self._equipped().quantum():
                job.work.close()
        except Exception as error:
            fields = failures.describe(error, with_text=self._log_texts)
            self._log.error("clean_up_failed", command=job.command, **fields)
