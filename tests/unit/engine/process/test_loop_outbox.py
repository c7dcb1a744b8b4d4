"""The outbox writes what fits and keeps the rest in order."""

from __future__ import annotations

import socket

import pytest

from trephine.engine.process.outbox import FULL_BYTES, Outbox


def test_bytes_come_out_in_order_however_slowly_they_are_read() -> None:
    """Nothing is lost, doubled or reordered when the socket takes only parts."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    data = [bytes([index]) * 100_000 for index in range(50)]
    outbox = Outbox(ours)
    outbox.put([*data, b""])
    received = b""
    while outbox:
        outbox.flush()
        received += theirs.recv(1 << 20)
    ours.close()
    while rest := theirs.recv(1 << 20):
        received += rest
    theirs.close()
    assert received == b"".join(data)


def test_it_is_full_until_it_is_read() -> None:
    """Above the mark it says so, and no longer once the reader has caught up."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    outbox = Outbox(ours)
    outbox.put([b"x" * (FULL_BYTES + (4 << 20))])
    outbox.flush()
    assert outbox.full
    while outbox.full:
        theirs.recv(1 << 20)
        outbox.flush()
    ours.close()
    theirs.close()


def test_a_reader_that_is_gone_raises() -> None:
    """Writing to a closed peer is a ConnectionError, not silence."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.close()
    outbox = Outbox(ours)
    outbox.put([b"x"])
    with pytest.raises(ConnectionError):
        outbox.flush()
    ours.close()
