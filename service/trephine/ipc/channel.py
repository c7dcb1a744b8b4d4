"""A socket between two of our processes, as calls: the asyncio side, and a plain blocking side.

Either side may ask. A request streams any number of events and ends with one result or error. The side that
answers sends at most `EVENT_CREDIT` events that are not acknowledged; the asking side acknowledges an event
once its consumer has taken it, so a slow consumer slows its own call only.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from itertools import count

from trephine.domain.errors import (
    CorruptRecordError,
    DeadlinePassedError,
    InternalError,
    InvalidRequestError,
    QueueFullError,
    TrephineError,
)
from trephine.ipc import codec
from trephine.ipc.frames import (
    DEFAULT_LIMITS,
    HEAD_BYTES,
    Frame,
    FrameKind,
    FrameLimits,
    Tree,
    pack,
    parse,
    read_head,
    read_table,
)

EVENT_CREDIT = 32
"""Unacknowledged events per request after which its work is not scheduled."""

MAX_SERVED = 64
"""Requests of a peer that are answered at one time."""

LARGE_JSON_BYTES = 1 << 20
"""JSON above this is parsed and validated off the event loop."""

OnEvent = Callable[[Frame], Awaitable[None]]
Serve = Callable[[Frame], Awaitable[Tree]]
Lost = Callable[[str], TrephineError]


async def read_frame(reader: asyncio.StreamReader, limits: FrameLimits = DEFAULT_LIMITS) -> Frame:
    """Read one frame.

    Raises:
        EOFError: If the stream ends before or inside a frame.
        CorruptRecordError: If the bytes are no frame.
        MessageTooLargeError: If it announces more than the caps allow.
    """
    json_bytes, table_bytes = read_head(await reader.readexactly(HEAD_BYTES), limits)
    head = read_table(json_bytes, await reader.readexactly(table_bytes), limits)
    text = await reader.readexactly(head.json_bytes)
    attachments = [await reader.readexactly(length) for length in head.attachments]
    if head.json_bytes > LARGE_JSON_BYTES:
        return await asyncio.to_thread(parse, text, attachments)
    return parse(text, attachments)


class Channel:
    """The asyncio side. Calls run concurrently; incoming requests go to `serve`, one task each.

    Args:
        sock: A connected stream socket; the channel owns it.
        lost: Makes the error that every unfinished call gets when the peer is gone.
        serve: Answers the peer's requests with a tree; None refuses them all.
        limits: Caps on frames in both directions.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        lost: Lost,
        serve: Serve | None = None,
        limits: FrameLimits = DEFAULT_LIMITS,
    ) -> None:
        self._sock = sock
        self._lost = lost
        self._serve = serve
        self._limits = limits
        self._ids = count(1)
        self._waiting: dict[int, asyncio.Queue[Frame | TrephineError]] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._end: TrephineError | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start reading. Call once, on the loop that will make the calls."""
        reader, self._writer = await asyncio.open_connection(sock=self._sock, limit=LARGE_JSON_BYTES)
        self._reading = asyncio.create_task(self._read(reader), name="channel-reader")

    @property
    def alive(self) -> bool:
        """True while the peer's end is open."""
        return self._end is None and self._writer is not None

    async def closed(self) -> None:
        """Return once the peer is gone or the channel was closed."""
        if self._reading is not None:
            await asyncio.wait([self._reading])

    async def call(
        self,
        command: str,
        body: Tree = None,
        *,
        on_event: OnEvent | None = None,
        deadline_seconds: float | None = None,
    ) -> Frame:
        """Ask the peer and return its result frame; cancelling the caller cancels the peer's work.

        Raises:
            TrephineError: The peer's error, rebuilt; or the one that `lost` makes if it is gone.
            DeadlinePassedError: If the deadline passed first.
            MessageTooLargeError: If the request is above the cap.
        """
        id = next(self._ids)
        answers = self._waiting[id] = asyncio.Queue()
        finished = False
        try:
            async with asyncio.timeout(deadline_seconds):
                await self._send(_request(id, command, body, deadline_seconds))
                result = await self._answer(id, answers, on_event)
            finished = True
            return result
        except TimeoutError as error:
            raise DeadlinePassedError(
                f"{command} did not end within {deadline_seconds} seconds", command=command
            ) from error
        finally:
            del self._waiting[id]
            if not finished:
                self._post(Frame(kind=FrameKind.CANCEL, id=id))

    async def ping(self, timeout_seconds: float) -> None:
        """Return once the peer answered a ping.

        Raises:
            DeadlinePassedError: If it did not in time.
            TrephineError: The one that `lost` makes.
        """
        id = next(self._ids)
        answers = self._waiting[id] = asyncio.Queue()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._send(Frame(kind=FrameKind.PING, id=id))
                if isinstance(answer := await answers.get(), TrephineError):
                    raise answer
        except TimeoutError as error:
            raise DeadlinePassedError("no answer to a ping in time") from error
        finally:
            del self._waiting[id]

    async def close(self) -> None:
        """Close the socket; unfinished calls get the error that `lost` makes. May be called again."""
        self._stop("the channel was closed")
        tasks = [*self._serving.values(), *([self._reading] if self._reading else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _answer(
        self, id: int, answers: asyncio.Queue[Frame | TrephineError], on_event: OnEvent | None
    ) -> Frame:
        while True:
            answer = await answers.get()
            if isinstance(answer, TrephineError):
                raise answer
            if answer.kind is FrameKind.RESULT:
                return answer
            if answer.kind is FrameKind.ERROR:
                raise codec.error_from_tree(answer.body)
            if on_event is not None:
                await on_event(answer)
            self._post(Frame(kind=FrameKind.ACK, id=id))

    async def _send(self, frame: Frame) -> None:
        if self._end is not None or self._writer is None:
            raise self._end or self._lost("the channel is not open")
        try:
            self._writer.writelines(pack(frame, self._limits))
            await self._writer.drain()
        except ConnectionError as error:
            self._stop(type(error).__name__)
            raise self._end or self._lost("the connection broke") from error

    def _post(self, frame: Frame) -> None:
        """Send a small frame without waiting; on a closed channel there is nobody to tell."""
        if self._end is None and self._writer is not None:
            self._writer.writelines(pack(frame, self._limits))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        why = "its socket closed"
        try:
            while True:
                self._take(await read_frame(reader, self._limits))
        except (EOFError, ConnectionError):
            pass
        except TrephineError as error:
            why = error.message
        finally:
            self._stop(why)

    def _take(self, frame: Frame) -> None:
        if frame.kind is FrameKind.REQUEST:
            self._serving[frame.id] = asyncio.create_task(self._serve_one(frame))
        elif frame.kind is FrameKind.CANCEL:
            if (task := self._serving.get(frame.id)) is not None:
                task.cancel()
        elif frame.kind is FrameKind.PING:
            self._post(Frame(kind=FrameKind.PONG, id=frame.id))
        elif (answers := self._waiting.get(frame.id)) is not None and frame.kind is not FrameKind.ACK:
            if answers.qsize() > EVENT_CREDIT:
                raise CorruptRecordError("its events came faster than they were acknowledged")
            answers.put_nowait(frame)

    async def _serve_one(self, request: Frame) -> None:
        try:
            reply = Frame(kind=FrameKind.RESULT, id=request.id, body=await self._serve_request(request))
        except TrephineError as error:
            reply = error_frame(request.id, error)
        finally:
            self._serving.pop(request.id, None)
        try:
            await self._send(reply)
        except TrephineError as error:
            self._post(error_frame(request.id, error))

    async def _serve_request(self, request: Frame) -> Tree:
        if self._serve is None:
            raise InvalidRequestError("this end answers no requests", field="command")
        if len(self._serving) > MAX_SERVED:
            raise QueueFullError(f"more than {MAX_SERVED} requests wait here already")
        try:
            return await self._serve(request)
        except TrephineError:
            raise
        except Exception as error:
            asyncio.get_running_loop().call_exception_handler(
                {"message": f"answering {request.command} failed", "exception": error}
            )
            raise InternalError("a defect while answering; see the log") from error

    def _stop(self, why: str) -> None:
        if self._end is not None:
            return
        self._end = self._lost(why)
        if self._writer is not None:
            self._writer.close()
        for answers in self._waiting.values():
            answers.put_nowait(self._lost(why))
        for task in self._serving.values():
            task.cancel()


def _request(id: int, command: str, body: Tree, deadline_seconds: float | None) -> Frame:
    return Frame(kind=FrameKind.REQUEST, id=id, command=command, body=body, deadline_seconds=deadline_seconds)


def error_frame(id: int, error: TrephineError) -> Frame:
    """The frame that ends a request with an error."""
    return Frame(kind=FrameKind.ERROR, id=id, body=codec.error_to_tree(error))
