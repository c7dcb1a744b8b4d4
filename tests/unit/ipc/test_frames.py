"""Frames: what is written is read back, and what is no frame is refused by type."""

from __future__ import annotations

import json
import math
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trephine.domain.errors import CorruptRecordError, MessageTooLargeError
from trephine.ipc.frames import MAGIC, Frame, FrameKind, FrameLimits, FrameParser, pack, parse

trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(max_size=64),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(min_size=1), inner, max_size=4),
    max_leaves=20,
)


def read(data: bytes, limits: FrameLimits | None = None, step: int = 1 << 20) -> list[Frame]:
    parser = FrameParser(limits or FrameLimits())
    frames: list[Frame] = []
    for start in range(0, len(data), step):
        parser.feed(data[start : start + step])
        frames += parser.frames()
    return frames


def event(body: object) -> Frame:
    return Frame(kind=FrameKind.EVENT, id=7, body=body)


@given(st.lists(trees, min_size=1, max_size=3), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_any_tree_comes_back_however_the_bytes_arrive(bodies: list[object], step: int) -> None:
    """Frames survive being cut into pieces at any place, bytes and surrogates included."""
    data = b"".join(part for body in bodies for part in pack(event(body)))
    assert read(data, step=step) == [event(body) for body in bodies]


def test_all_fields_of_a_request_come_back() -> None:
    """Id, command, deadline and body are all in the frame."""
    frame = Frame(kind=FrameKind.REQUEST, id=3, command="Score", deadline_seconds=1.5, body={"a": [b"x"]})
    assert read(b"".join(pack(frame))) == [frame]


def test_bytes_travel_beside_the_json() -> None:
    """An attachment is written as it is: neither copied nor base64."""
    data = bytes(range(256)) * 4096
    parts = pack(event({"data": data}))
    assert parts[1] is data
    assert len(parts[0]) < 200


def test_not_a_number_and_infinity_stay_what_they_are() -> None:
    """The policy for non-finite numbers: they cross unchanged, never as null."""
    [frame] = read(b"".join(pack(event([math.nan, math.inf, -math.inf]))))
    assert math.isnan(frame.body[0])
    assert frame.body[1:] == [math.inf, -math.inf]


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<4sII", MAGIC, 4, 0) + b"nope",
        struct.pack("<4sII", MAGIC, 2, 0) + b"[]",
        struct.pack("<4sII", MAGIC, 2, 0) + b"{}",
        struct.pack("<4sII", MAGIC, 26, 0) + b'{"kind":"event","id":"one"}'[:26],
        struct.pack("<4sII", MAGIC, 2, 0) + b"\xff\xfe",
    ],
    ids=["other protocol", "no json", "no object", "no kind", "cut json", "no utf-8"],
)
def test_garbage_is_a_typed_error(garbage: bytes) -> None:
    """Bytes that are no frame raise CorruptRecordError."""
    with pytest.raises(CorruptRecordError):
        read(garbage)


@pytest.mark.parametrize("index", [-1, 1, "0", None, True])
def test_a_reference_to_an_attachment_that_is_not_there_is_refused(index: object) -> None:
    """A crafted index reads no other attachment and raises no bare IndexError."""
    text = json.dumps({"kind": "event", "id": 1, "body": {"\0bytes": index}}).encode()
    with pytest.raises(CorruptRecordError):
        parse(text, [b"only one"])


@pytest.mark.parametrize(
    "limits",
    [FrameLimits(json_bytes=100), FrameLimits(total_bytes=1000), FrameLimits(attachments=1)],
    ids=["json", "total", "count"],
)
def test_caps_hold_on_both_sides(limits: FrameLimits) -> None:
    """A frame above any cap is neither written nor read; the reader refuses at the head."""
    frame = event(["x" * 200, b"1" * 600, b"2" * 600])
    with pytest.raises(MessageTooLargeError):
        pack(frame, limits)
    with pytest.raises(MessageTooLargeError):
        read(b"".join(pack(frame))[:30], limits)


def test_an_announced_flood_of_attachments_is_refused_before_its_table_is_read() -> None:
    """Four thousand million announced attachments cost nothing."""
    with pytest.raises(MessageTooLargeError):
        read(struct.pack("<4sII", MAGIC, 10, 2**32 - 1))


def test_a_truncated_stream_is_seen() -> None:
    """The parser knows that it is inside a frame when the bytes end."""
    parser = FrameParser()
    parser.feed(b"".join(pack(event("x")))[:-1])
    assert list(parser.frames()) == []
    assert parser.inside_a_frame


def test_what_is_neither_json_nor_bytes_is_refused() -> None:
    """No object is smuggled across: only JSON and bytes are written."""
    with pytest.raises(TypeError, match="object"):
        pack(event({"a": object()}))
