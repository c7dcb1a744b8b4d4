"""Calls that Ctrl-C cannot break: gRPC runs on threads that no signal reaches.

Ctrl-C comes between any two instructions of the main thread, also where gRPC has just taken a lock of its
channel. That lock is then never released, and every later call, and closing the channel, waits without end.
So the caller's thread runs none of gRPC's code: it hands over what is to be done and waits for the answer on
a `queue.SimpleQueue`, which is written in C and leaves nothing locked when a wait is interrupted. It waits in
slices: a signal that arrives just before a wait is noticed when that wait ends.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

import grpc

from trephine.client.local_errors import CLOSED, ConnectionClosedError
from trephine.client.status import error_of_call

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")

Step = Callable[[], object]

_SLICE_SECONDS = 0.5
"""The longest that a Ctrl-C can go unnoticed."""


@dataclass(frozen=True, slots=True)
class _Answer(Generic[ResponseT]):
    """A response, or why there is none, or that no more will come."""

    response: ResponseT | None = None
    failure: Exception | None = None
    ended: bool = False


class Calls:
    """Starts, awaits and ends the calls of one channel, which it closes. Safe to use from several threads."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel
        """For stubs to be built on; a stub's methods are called by `ask` and `stream` alone."""
        self._closed = False
        """Written and read where steps are done, so in their order."""
        self._steps: SimpleQueue[Step | None] = SimpleQueue()
        weakref.finalize(self, self._steps.put, None)
        Thread(target=_conduct, args=(self._steps,), name="trephine-calls", daemon=True).start()

    def __enter__(self) -> Calls:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(
        self, method: grpc.UnaryUnaryMultiCallable[RequestT, ResponseT], request: RequestT, **options: Any
    ) -> ResponseT:
        """Ask once. An interrupted wait cancels the call.

        Args:
            method: Of a stub of this channel.
            request: What it takes.
            options: Of gRPC: timeout, metadata, wait_for_ready.

        Raises:
            TrephineError: What the server answered, rebuilt.
            ConnectionClosedError: If the channel is closed.
        """
        answers: SimpleQueue[_Answer[ResponseT]] = SimpleQueue()
        running: list[grpc.Future[ResponseT]] = []

        def done(call: grpc.Future[ResponseT]) -> None:
            running.clear()
            answers.put(_answer(call.result))

        def begin() -> None:
            self._check_open()
            running.append(method.future(request, **options))
            running[0].add_done_callback(done)

        self._steps.put(partial(_reporting, begin, answers))
        try:
            return _response(_awaited(answers))
        finally:
            self._steps.put(partial(_cancel, running))

    def stream(
        self, method: grpc.UnaryStreamMultiCallable[RequestT, ResponseT], request: RequestT, **options: Any
    ) -> Generator[ResponseT, None, None]:
        """Ask, and take the answers as they come: the next is asked for when the last was taken.

        Closing the iterator, or interrupting it, ends the call. Arguments and errors are those of `ask`.
        """
        wanted: SimpleQueue[bool] = SimpleQueue()
        answers: SimpleQueue[_Answer[ResponseT]] = SimpleQueue()
        running: list[Any] = []

        def begin() -> None:
            self._check_open()
            running.append(method(request, **options))
            work = (running[0], wanted, answers)
            Thread(target=_read, args=work, name="trephine-stream", daemon=True).start()

        self._steps.put(partial(_reporting, begin, answers))
        try:
            wanted.put(True)
            while not (answer := _awaited(answers)).ended:
                yield _response(answer)
                wanted.put(True)
        finally:
            wanted.put(False)
            self._steps.put(partial(_cancel, running))

    def close(self) -> None:
        """Close the channel; calls that run on it end, and later ones are refused."""
        answers: SimpleQueue[_Answer[None]] = SimpleQueue()

        def end() -> None:
            self._closed = True
            self.channel.close()
            answers.put(_Answer())

        self._steps.put(partial(_reporting, end, answers))
        _response(_awaited(answers))

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectionClosedError(CLOSED)


# --- on the other threads ------------------------------------------------------------------------


def _conduct(steps: SimpleQueue[Step | None]) -> None:
    """Do what is handed over, in order. No step waits for a server."""
    while (step := steps.get()) is not None:
        step()
        del step  # a call that ended is not kept until the next one comes


def _reporting(step: Step, answers: SimpleQueue[_Answer[Any]]) -> None:
    """Do a step; what it raises reaches the thread that waits."""
    try:
        step()
    except Exception as failure:  # raised again on the caller's thread
        answers.put(_Answer(failure=_translated(failure)))


def _read(call: Iterator[Any], wanted: SimpleQueue[bool], answers: SimpleQueue[_Answer[Any]]) -> None:
    """Take a stream's next message whenever it is wanted."""
    while wanted.get():
        answer = _answer(call.__next__)
        answers.put(answer)
        if answer.ended or answer.failure is not None:
            return


def _cancel(running: list[Any]) -> None:
    """End a call, and let go of it on this thread: its finalizer takes its lock."""
    while running:
        running.pop().cancel()


def _answer(take: Callable[[], ResponseT]) -> _Answer[ResponseT]:
    try:
        return _Answer(take())
    except StopIteration:
        return _Answer(ended=True)
    except Exception as failure:  # raised again on the caller's thread
        return _Answer(failure=_translated(failure))


def _translated(failure: Exception) -> Exception:
    if not isinstance(failure, grpc.RpcError):
        return failure
    try:
        error: Exception = error_of_call(failure)
    except Exception as defect:  # ours; whoever waits for an answer is to be told of it
        error = defect
    error.__cause__ = failure
    return error


# --- on the caller's thread ----------------------------------------------------------------------


def _awaited(answers: SimpleQueue[_Answer[ResponseT]]) -> _Answer[ResponseT]:
    while True:
        try:
            return answers.get(timeout=_SLICE_SECONDS)
        except Empty:
            continue  # here a pending KeyboardInterrupt is raised


def _response(answer: _Answer[ResponseT]) -> ResponseT:
    if answer.failure is not None:
        raise answer.failure
    return cast("ResponseT", answer.response)
