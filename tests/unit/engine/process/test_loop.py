"""The engine's loop, by counting quanta: one thread, no torch, no sleeping.

The handlers hold the service's end of the socket and write frames *during* their quanta, so what the loop
does after exactly that quantum is fixed, and closing that end from a handler ends the loop.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from trephine.domain.ablation import LogitTarget
from trephine.domain.activations import ReadActivations
from trephine.domain.circuits import DiscoverCircuit
from trephine.domain.commands import Command, Progress
from trephine.domain.generation import Generate, Row
from trephine.domain.models import AskStatus, EngineStatus
from trephine.domain.tokens import Text, Tokenize
from trephine.engine.models.session import Session, ask_status
from trephine.engine.process import loop
from trephine.engine.process.loop import Equipment, Loop
from trephine.ipc import codec
from trephine.ipc.channel import EVENT_CREDIT
from trephine.ipc.frames import Frame, FrameKind, FrameParser, pack

SHORT = Tokenize(text="x")
LONG = DiscoverCircuit(prompt="x", target=LogitTarget(token="#1"))


class Service:
    """The service's end of the socket, used without threads."""

    def __init__(self) -> None:
        self.socket, self.engine_end = socket.socketpair()
        self.socket.settimeout(60)
        self._parser = FrameParser()

    def send(self, frame: Frame) -> None:
        for part in pack(frame):
            self.socket.sendall(part)

    def ask(self, id: int, command: Command[Any, Any], deadline_seconds: float | None = None) -> None:
        self.send(
            Frame(
                kind=FrameKind.REQUEST,
                id=id,
                command=type(command).__name__,
                body=codec.to_tree(command),
                deadline_seconds=deadline_seconds,
            )
        )

    def cancel(self, id: int) -> None:
        self.send(Frame(kind=FrameKind.CANCEL, id=id))

    def hang_up(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def frames(self) -> list[Frame]:
        """Everything that the engine wrote; call it once the loop has ended."""
        self.engine_end.close()
        while data := self.socket.recv(1 << 16):
            self._parser.feed(data)
        return list(self._parser.frames())


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.socket.close()
    service.engine_end.close()


def serve(service: Service, handlers: dict[type, Any], **options: Any) -> Session:
    session = Session()
    Loop(service.engine_end, lambda: Equipment(handlers=handlers), session, **options).run()
    return session


def errors(frames: list[Frame]) -> dict[int, str]:
    return {frame.id: frame.body["reason"] for frame in frames if frame.kind is FrameKind.ERROR}


def quanta_after(service: Service, act: Callable[[], None]) -> tuple[int, list[Frame]]:
    """How many quanta an endless job still gets once `act` happened in its third quantum."""
    quanta = 0
    closed = False

    def endless(session: Session, command: DiscoverCircuit) -> Generator[None, None, None]:
        nonlocal quanta, closed
        try:
            while True:
                quanta += 1
                if quanta == 3:
                    act()
                elif quanta > 10:
                    service.hang_up()
                yield
        finally:
            closed = True
            service.hang_up()

    service.ask(1, LONG)
    serve(service, {DiscoverCircuit: endless})
    assert closed, "the generator's finally block must have run"
    return quanta - 3, service.frames()


def test_a_cancel_ends_a_job_within_one_quantum(service: Service) -> None:
    """No quantum follows the one in which the cancel arrived, and the job ends as CANCELLED."""
    after, frames = quanta_after(service, lambda: service.cancel(1))
    assert after == 0
    assert errors(frames) == {1: "CANCELLED"}


def test_a_lost_socket_ends_all_jobs_within_one_quantum(service: Service) -> None:
    """No quantum follows the one in which the service hung up."""
    after, _ = quanta_after(service, service.hang_up)
    assert after == 0


def test_a_cancel_of_something_unknown_is_ignored(service: Service) -> None:
    """A cancel that crosses the result on its way does no harm."""
    after, _ = quanta_after(service, lambda: service.cancel(99))
    assert after > 1


def test_a_deadline_is_checked_between_quanta(service: Service) -> None:
    """The job gets no quantum once its deadline has passed on the loop's clock."""
    now, quanta = 100.0, 0

    def slow(session: Session, command: DiscoverCircuit) -> Generator[None, None, None]:
        nonlocal now, quanta
        try:
            while True:
                quanta += 1
                now += 1.0
                yield
        finally:
            service.hang_up()

    service.ask(1, LONG, deadline_seconds=2.5)
    serve(service, {DiscoverCircuit: slow}, clock=lambda: now)
    assert quanta == 3
    assert errors(service.frames()) == {1: "DEADLINE_PASSED"}


def test_an_interactive_call_takes_one_operation_quantum_at_most(service: Service) -> None:
    """A short call that arrives during an Operation is answered before the Operation's next quantum."""
    order: list[str] = []

    def operation(session: Session, command: DiscoverCircuit) -> Generator[None, None, Text]:
        for index in range(5):
            order.append(f"operation {index}")
            if index == 1:
                service.ask(2, SHORT)
            yield
        service.hang_up()
        return Text(text="done")

    def short(session: Session, command: Tokenize) -> Generator[None, None, Text]:
        order.append("short")
        yield
        order.append("short")
        return Text(text="done")

    service.ask(1, LONG)
    serve(service, {DiscoverCircuit: operation, Tokenize: short})
    assert order[:5] == ["operation 0", "operation 1", "short", "short", "operation 2"]


def test_an_operation_is_not_starved(service: Service) -> None:
    """Under endless interactive work an Operation gets every ninth quantum."""
    order: list[str] = []

    def operation(session: Session, command: DiscoverCircuit) -> Generator[None, None, None]:
        while True:
            order.append("operation")
            yield

    def busy(session: Session, command: Tokenize) -> Generator[None, None, None]:
        while True:
            order.append(command.text)
            if len(order) >= 90:
                service.hang_up()
            yield

    service.ask(1, LONG)
    service.ask(2, Tokenize(text="a"))
    service.ask(3, Tokenize(text="b"))
    serve(service, {DiscoverCircuit: operation, Tokenize: busy})
    assert order[:9] == ["a", "b"] * 4 + ["operation"]
    assert order.count("operation") == 10
    assert abs(order.count("a") - order.count("b")) <= 1


def test_a_job_without_credit_is_not_scheduled(service: Service) -> None:
    """After 32 unacknowledged events a job stops; one acknowledgement buys one more event."""
    sent: list[int] = []

    def chatty(session: Session, command: Generate) -> Generator[Progress, None, None]:
        while True:
            sent.append(len(sent))
            yield Progress(stage="x", done=len(sent), total=0)

    def watch(session: Session, command: DiscoverCircuit) -> Generator[None, None, None]:
        for _ in range(3 * EVENT_CREDIT):
            yield
        assert len(sent) == EVENT_CREDIT
        service.send(Frame(kind=FrameKind.ACK, id=1))
        for _ in range(20):
            yield
        assert len(sent) == EVENT_CREDIT + 1
        service.hang_up()
        while True:
            yield

    service.ask(1, Generate(rows=(Row(prompt="x"),)))
    service.ask(2, LONG)
    serve(service, {Generate: chatty, DiscoverCircuit: watch})
    assert errors(service.frames()) == {}
    assert len(sent) == EVENT_CREDIT + 1


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (ValueError("secret"), "INTERNAL"),
        (MemoryError(), "OVER_BUDGET"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), "OVER_BUDGET"),
        (OSError(28, "No space left on device"), "DISK_FULL"),
        (ConnectionResetError("of something else"), "INTERNAL"),
        (StopIteration(), "INTERNAL"),
    ],
    ids=repr,
)
def test_what_a_handler_raises_becomes_a_typed_error(
    service: Service, raised: Exception, reason: str
) -> None:
    """A job that fails gets its typed error; the loop serves the next one."""

    def failing(session: Session, command: DiscoverCircuit) -> Generator[None, None, None]:
        yield
        raise raised

    def last(session: Session, command: Tokenize) -> Generator[None, None, Text]:
        for _ in range(3 * 9):
            yield
        service.hang_up()
        return Text(text="alive")

    service.ask(1, LONG)
    service.ask(2, SHORT)
    serve(service, {DiscoverCircuit: failing, Tokenize: last})
    frames = service.frames()
    assert errors(frames) == {1: reason}
    assert "secret" not in str([frame.body for frame in frames])
    assert [frame.body for frame in frames if frame.kind is FrameKind.RESULT] == [{"text": "alive"}]


def test_a_handler_that_is_no_generator_or_returns_nonsense_fails_alone(service: Service) -> None:
    """Defects in the shape of a handler's answer are errors of that call."""

    def no_generator(session: Session, command: DiscoverCircuit) -> Text:
        return Text(text="x")

    def nonsense(session: Session, command: Tokenize) -> Generator[None, None, Any]:
        yield
        return object()

    def last(session: Session, command: ReadActivations) -> Generator[None, None, Text]:
        yield
        service.hang_up()
        return Text(text="x")

    service.ask(1, LONG)
    service.ask(2, SHORT)
    service.ask(3, ReadActivations(text="x", features=()))
    serve(service, {DiscoverCircuit: no_generator, Tokenize: nonsense, ReadActivations: last})
    frames = service.frames()
    assert errors(frames) == {1: "INTERNAL", 2: "INTERNAL"}
    assert [frame.id for frame in frames if frame.kind is FrameKind.RESULT] == [3]


def test_a_failing_clean_up_does_not_stop_the_loop(service: Service) -> None:
    """A finally block that raises on cancellation is logged; the next call is answered."""

    def messy(session: Session, command: DiscoverCircuit) -> Generator[None, None, None]:
        try:
            service.cancel(1)
            service.ask(2, SHORT)
            yield
        finally:
            raise ValueError("clean-up")

    def last(session: Session, command: Tokenize) -> Generator[None, None, Text]:
        yield
        service.hang_up()
        return Text(text="x")

    service.ask(1, LONG)
    serve(service, {DiscoverCircuit: messy, Tokenize: last})
    frames = service.frames()
    assert errors(frames) == {1: "CANCELLED"}
    assert frames[-1].kind is FrameKind.RESULT


def test_every_quantum_runs_inside_its_context(service: Service) -> None:
    """The context (inference mode) is entered once per quantum, also for closing, and never spans a yield."""
    depth, entered = 0, 0

    @contextmanager
    def quantum() -> Iterator[None]:
        nonlocal depth, entered
        depth += 1
        entered += 1
        try:
            yield
        finally:
            depth -= 1

    def work(session: Session, command: DiscoverCircuit) -> Generator[None, None, Text]:
        for _ in range(4):
            assert depth == 1
            yield
        service.hang_up()
        return Text(text="x")

    service.ask(1, LONG)
    equipment = Equipment(handlers={DiscoverCircuit: work}, quantum=quantum)
    session = Session()
    Loop(service.engine_end, lambda: equipment, session).run()
    assert depth == 0
    assert errors(service.frames()) == {}
    assert session.counters.quanta == 5
    assert entered == 6


def test_the_status_counts_quanta_and_jobs(service: Service) -> None:
    """AskStatus tells the quanta so far, the unfinished jobs and the longest quantum."""
    now = 0.0

    def long(session: Session, command: DiscoverCircuit) -> Generator[None, None, None]:
        nonlocal now
        for index in range(3):
            now += index
            yield
        service.ask(2, AskStatus())
        yield
        service.hang_up()
        yield

    service.ask(1, LONG)
    serve(service, {DiscoverCircuit: long, AskStatus: ask_status}, clock=lambda: now)
    [frame] = [frame for frame in service.frames() if frame.id == 2]
    status = codec.from_tree(EngineStatus, frame.body)
    assert status == EngineStatus(quanta=5, jobs=2, longest_quantum_seconds=2.0)


def test_a_ping_is_answered_before_the_equipment_is_fetched(service: Service) -> None:
    """Importing torch takes seconds: the first ping does not wait for it."""
    seen: list[list[FrameKind]] = []

    def equip() -> Equipment:
        data = service.socket.recv(1 << 16)
        parser = FrameParser()
        parser.feed(data)
        seen.append([frame.kind for frame in parser.frames()])
        service.hang_up()
        return Equipment(handlers={})

    service.send(Frame(kind=FrameKind.PING, id=1))
    Loop(service.engine_end, equip, Session()).run()
    assert seen == [[FrameKind.PONG]]


def test_bad_requests_are_refused_and_the_loop_goes_on(service: Service) -> None:
    """An unknown command, a wrong body, an id in use and a command without handler are all typed."""

    def last(session: Session, command: Tokenize) -> Generator[None, None, Text]:
        yield
        service.hang_up()
        return Text(text="x")

    service.send(Frame(kind=FrameKind.REQUEST, id=1, command="Nonsense"))
    service.send(Frame(kind=FrameKind.REQUEST, id=2, command="Tokenize", body={"text": 3}))
    service.ask(3, AskStatus())
    service.ask(4, SHORT)
    service.ask(4, SHORT)
    serve(service, {Tokenize: last})
    assert errors(service.frames()) == {
        1: "INVALID_REQUEST",
        2: "INVALID_REQUEST",
        3: "UNSUPPORTED_OPTION",
        4: "QUEUE_FULL",
    }


def test_too_many_jobs_are_refused(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop holds a bounded number of jobs; one more is QUEUE_FULL."""

    def endless(session: Session, command: Tokenize) -> Generator[None, None, None]:
        while True:
            yield

    monkeypatch.setattr(loop, "MAX_JOBS", 5)
    for id in range(5):
        service.ask(id, SHORT)
    service.ask(999, SHORT)
    service.hang_up()
    serve(service, {Tokenize: endless})
    assert errors(service.frames()) == {999: "QUEUE_FULL"}


def test_an_unread_socket_does_not_hold_the_loop(service: Service) -> None:
    """With a reader that reads nothing the loop still takes cancels, and writes on as it can."""
    blob = b"x" * (20 << 20)

    def big(session: Session, command: Tokenize) -> Generator[None, None, Any]:
        from trephine.domain.arrays import Array

        for _ in range(12):
            yield
        service.cancel(1)
        service.hang_up()
        return Array(dtype="uint8", shape=(len(blob),), data=blob)

    closed: list[bool] = []

    def endless(session: Session, command: DiscoverCircuit) -> Generator[None, None, None]:
        try:
            while True:
                yield
        finally:
            closed.append(True)

    service.ask(1, LONG)
    service.ask(2, SHORT)
    serve(service, {Tokenize: big, DiscoverCircuit: endless})
    assert closed == [True]


def test_leaving_interrupts_a_quantum_but_never_a_clean_up(service: Service) -> None:
    """A termination signal ends a quantum at once; a second one does not cut its finally block short."""
    steps: list[str] = []
    session = Session()

    def long(session: Session, command: DiscoverCircuit) -> Generator[None, None, None]:
        try:
            yield
            engine.leave()
            steps.append("not interrupted")
        finally:
            engine.leave()
            steps.append("cleaned up")

    service.ask(1, LONG)
    engine = Loop(service.engine_end, lambda: Equipment(handlers={DiscoverCircuit: long}), session)
    with pytest.raises(SystemExit):
        engine.run()
    assert steps == ["cleaned up"]
