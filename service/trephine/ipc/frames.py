r"""Frames between our own processes: a fixed head, JSON, raw attachments. Nothing is ever pickled.

Layout, little endian: magic `TRF1`, uint32 JSON bytes, uint32 number of attachments, one uint64 length per
attachment, the JSON, the attachments. A `bytes` value anywhere in a frame's body travels as an attachment;
in the JSON its place holds `{"\u0000bytes": index}`.

NaN and the infinities cross as the literals `NaN`, `Infinity` and `-Infinity`, which both ends read: a figure
is never silently turned into null, and whether a field may hold them is decided by its domain type.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from trephine.domain.errors import CorruptRecordError, MessageTooLargeError

Tree = Any
"""What JSON can hold, and `bytes`."""

MAGIC = b"TRF1"
ATTACHMENT_KEY = "\0bytes"
_HEAD = struct.Struct("<4sII")
_LENGTH = struct.Struct("<Q")


class FrameKind(StrEnum):
    """What a frame says. Ids are chosen by the side that sends the request."""

    REQUEST = "request"
    """`command`, `body`, optionally `deadline_seconds` from now."""
    EVENT = "event"
    RESULT = "result"
    ERROR = "error"
    """`body` is `{reason, message, context}`."""
    CANCEL = "cancel"
    ACK = "ack"
    """One event was taken: a credit for the next."""
    PING = "ping"
    PONG = "pong"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One message between two of our processes."""

    kind: FrameKind
    id: int
    command: str = ""
    deadline_seconds: float | None = None
    body: Tree = None
    json_bytes: int = field(default=0, compare=False)
    """Size of the JSON part it was read from; 0 for a frame made here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameLimits:
    """Caps on what is written and read; whoever is less trusted gets smaller ones."""

    json_bytes: int = 32 << 20
    total_bytes: int = 512 << 20
    attachments: int = 4096


DEFAULT_LIMITS = FrameLimits()


def pack(frame: Frame, limits: FrameLimits = DEFAULT_LIMITS) -> list[bytes]:
    """Turn a frame into the byte strings to be written one after the other; attachments are not copied.

    Raises:
        MessageTooLargeError: If it is above a cap.
        TypeError: If the body holds something that is neither JSON nor bytes.
    """
    attachments: list[bytes] = []

    def attach(value: object) -> dict[str, int]:
        if not isinstance(value, bytes):
            raise TypeError(f"{type(value).__name__} cannot cross a process border")
        attachments.append(value)
        return {ATTACHMENT_KEY: len(attachments) - 1}

    text = json.dumps(_header(frame), default=attach, separators=(",", ":")).encode("ascii")
    _check_sizes(len(text), [len(item) for item in attachments], limits)
    head = _HEAD.pack(MAGIC, len(text), len(attachments))
    lengths = b"".join(_LENGTH.pack(len(item)) for item in attachments)
    return [head + lengths + text, *attachments]


def _header(frame: Frame) -> dict[str, Tree]:
    header: dict[str, Tree] = {"kind": frame.kind.value, "id": frame.id}
    if frame.command:
        header["command"] = frame.command
    if frame.deadline_seconds is not None:
        header["deadline_seconds"] = frame.deadline_seconds
    if frame.body is not None:
        header["body"] = frame.body
    return header


def _check_sizes(json_bytes: int, attachments: Sequence[int], limits: FrameLimits) -> None:
    for what, size, cap in (
        ("JSON bytes", json_bytes, limits.json_bytes),
        ("attachments", len(attachments), limits.attachments),
        ("bytes", json_bytes + sum(attachments), limits.total_bytes),
    ):
        if size > cap:
            raise MessageTooLargeError(
                f"a frame of {size} {what} is above the cap of {cap}; ask for less at a time",
                size=size,
                cap=cap,
            )


def parse(text: bytes, attachments: Sequence[bytes]) -> Frame:
    """Turn the JSON part and the attachments of a frame back into the frame.

    Raises:
        CorruptRecordError: If it is no frame.
    """

    def detach(value: dict[str, Tree]) -> Tree:
        if len(value) != 1 or ATTACHMENT_KEY not in value:
            return value
        index = value[ATTACHMENT_KEY]
        if type(index) is not int or not 0 <= index < len(attachments):
            raise IndexError("no such attachment")
        return attachments[index]

    try:
        header = json.loads(text, object_hook=detach if attachments else None)
        return _frame(header, len(text))
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise CorruptRecordError(f"a frame that cannot be read: {type(error).__name__}") from error


def _frame(header: Tree, json_bytes: int) -> Frame:
    deadline = header.get("deadline_seconds") if isinstance(header, dict) else None
    if not (
        isinstance(header, dict)
        and isinstance(header["id"], int)
        and isinstance(header.get("command", ""), str)
        and isinstance(deadline, int | float | None)
    ):
        raise ValueError("wrong type")
    return Frame(
        kind=FrameKind(header["kind"]),
        id=header["id"],
        command=header.get("command", ""),
        deadline_seconds=deadline,
        body=header.get("body"),
        json_bytes=json_bytes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameHead:
    """The sizes that a frame announces, checked against the caps before anything is read."""

    json_bytes: int
    attachments: tuple[int, ...]


HEAD_BYTES = _HEAD.size


def read_head(data: bytes | bytearray | memoryview, limits: FrameLimits) -> tuple[int, int]:
    """Read the fixed head of `HEAD_BYTES` bytes: JSON bytes, and the size of the table of lengths.

    Raises:
        CorruptRecordError: If it does not start with the magic.
        MessageTooLargeError: If it announces more than the caps allow.
    """
    magic, json_bytes, count = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise CorruptRecordError("these bytes are no frame: the peer speaks another protocol")
    _check_sizes(json_bytes, [0] * min(count, limits.attachments + 1), limits)
    return json_bytes, count * _LENGTH.size


def read_table(json_bytes: int, table: bytes | bytearray | memoryview, limits: FrameLimits) -> FrameHead:
    """Read the table of attachment lengths.

    Raises:
        MessageTooLargeError: If the whole frame is above the cap.
    """
    lengths = tuple(length for (length,) in _LENGTH.iter_unpack(table))
    _check_sizes(json_bytes, lengths, limits)
    return FrameHead(json_bytes=json_bytes, attachments=lengths)


class FrameParser:
    """Turns bytes, fed in pieces of any size, into frames.

    Raises (from `feed` and `frames`):
        CorruptRecordError: If the bytes are no frames.
        MessageTooLargeError: If a frame announces more than the caps allow.
    """

    def __init__(self, limits: FrameLimits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._buffer = bytearray()
        self._head: FrameHead | None = None

    @property
    def inside_a_frame(self) -> bool:
        """True if the bytes so far end in the middle of a frame: at the stream's end, a truncation."""
        return self._head is not None or bool(self._buffer)

    def feed(self, data: bytes) -> None:
        """Take more bytes."""
        self._buffer += data

    def frames(self) -> Iterator[Frame]:
        """Yield every frame that is complete by now."""
        while (frame := self._next()) is not None:
            yield frame

    def _next(self) -> Frame | None:
        if self._head is None and not self._read_head():
            return None
        head = self._head
        if head is None or len(self._buffer) < head.json_bytes + sum(head.attachments):
            return None
        parts: list[bytes] = []
        with memoryview(self._buffer) as view:
            start = 0
            for length in (head.json_bytes, *head.attachments):
                parts.append(bytes(view[start : start + length]))
                start += length
        del self._buffer[:start]
        self._head = None
        return parse(parts[0], parts[1:])

    def _read_head(self) -> bool:
        if len(self._buffer) < HEAD_BYTES:
            return False
        json_bytes, table_bytes = read_head(self._buffer, self._limits)
        if len(self._buffer) < HEAD_BYTES + table_bytes:
            return False
        table = bytes(self._buffer[HEAD_BYTES : HEAD_BYTES + table_bytes])
        self._head = read_table(json_bytes, table, self._limits)
        del self._buffer[: HEAD_BYTES + table_bytes]
        return True
