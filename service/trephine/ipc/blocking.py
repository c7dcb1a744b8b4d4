"""The blocking side of a channel, for a plain synchronous process that answers one request at a time.

```python
channel = BlockingChannel(socket.socket(fileno=fd))
while (request := channel.next_request()) is not None:
    model = channel.call("DescribeCapabilities", {})   # asks the peer while it works
    channel.emit(request.id, to_tree(progress))
    channel.reply(request.id, to_tree(outcome))        # or channel.fail(request.id, error)
```
"""

from __future__ import annotations

import socket
from collections import deque
from itertools import count

from trephine.domain.errors import CancelledByCallerError, EngineLostError, TrephineError
from trephine.ipc import codec
from trephine.ipc.channel import EVENT_CREDIT, error_frame
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


class BlockingChannel:
    """One thread, one request at a time; that request may call the peer and be cancelled while it does.

    Args:
        sock: A connected stream socket in blocking mode; the channel owns it.
        limits: Caps on frames in both directions.
    """

    def __init__(self, sock: socket.socket, *, limits: FrameLimits = DEFAULT_LIMITS) -> None:
        sock.setblocking(True)
        self._sock = sock
        self._limits = limits
        self._ids = count(1)
        self._requests: deque[Frame] = deque()
        self._current: int | None = None
        self._unacknowledged = 0

    def next_request(self) -> Frame | None:
        """Wait for the next request; None once the peer is gone.

        Raises:
            CorruptRecordError: If the peer sends garbage.
        """
        while not self._requests:
            try:
                self._receive()
            except EOFError:
                return None
        request = self._requests.popleft()
        self._current, self._unacknowledged = request.id, 0
        return request

    def call(self, command: str, body: Tree = None) -> Frame:
        """Ask the peer and wait for its result.

        Raises:
            TrephineError: The peer's error, rebuilt.
            CancelledByCallerError: If the request being worked on was cancelled meanwhile.
            EngineLostError: If the peer is gone.
        """
        id = next(self._ids)
        self._send(Frame(kind=FrameKind.REQUEST, id=id, command=command, body=body))
        while True:
            frame = self._receive_or_lost()
            if frame is None or frame.id != id:
                continue
            if frame.kind is FrameKind.ERROR:
                raise codec.error_from_tree(frame.body)
            if frame.kind is FrameKind.RESULT:
                return frame
            self._send(Frame(kind=FrameKind.ACK, id=id))

    def emit(self, id: int, body: Tree) -> None:
        """Stream an event of request `id`; waits while too many are not acknowledged.

        Raises:
            CancelledByCallerError: If the request was cancelled meanwhile.
            EngineLostError: If the peer is gone.
        """
        while self._unacknowledged >= EVENT_CREDIT:
            self._receive_or_lost()
        self._unacknowledged += 1
        self._send(Frame(kind=FrameKind.EVENT, id=id, body=body))

    def reply(self, id: int, body: Tree = None) -> None:
        """End request `id` with a result."""
        self._send(Frame(kind=FrameKind.RESULT, id=id, body=body))

    def fail(self, id: int, error: TrephineError) -> None:
        """End request `id` with an error."""
        self._send(error_frame(id, error))

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def _send(self, frame: Frame) -> None:
        try:
            for part in pack(frame, self._limits):
                self._sock.sendall(part)
        except ConnectionError as error:
            raise EngineLostError("the service is gone") from error

    def _receive_or_lost(self) -> Frame | None:
        try:
            return self._receive()
        except EOFError as error:
            raise EngineLostError("the service is gone") from error

    def _receive(self) -> Frame | None:
        """Read one frame; requests are queued, acks counted, pings answered: those give None."""
        frame = self._read()
        match frame.kind:
            case FrameKind.REQUEST:
                self._requests.append(frame)
            case FrameKind.ACK if frame.id == self._current:
                self._unacknowledged -= 1
            case FrameKind.PING:
                self._send(Frame(kind=FrameKind.PONG, id=frame.id))
            case FrameKind.CANCEL:
                self._cancel(frame.id)
            case FrameKind.EVENT | FrameKind.RESULT | FrameKind.ERROR:
                return frame
        return None

    def _cancel(self, id: int) -> None:
        if id == self._current:
            raise CancelledByCallerError("the caller cancelled")
        self._requests = deque(request for request in self._requests if request.id != id)

    def _read(self) -> Frame:
        json_bytes, table_bytes = read_head(self._exactly(HEAD_BYTES), self._limits)
        head = read_table(json_bytes, self._exactly(table_bytes), self._limits)
        text = self._exactly(head.json_bytes)
        return parse(text, [self._exactly(length) for length in head.attachments])

    def _exactly(self, size: int) -> bytes:
        data = bytearray(size)
        with memoryview(data) as view:
            filled = 0
            while filled < size:
                received = self._sock.recv_into(view[filled:])
                if received == 0:
                    raise EOFError("the stream ended")
                filled += received
        return bytes(data)
