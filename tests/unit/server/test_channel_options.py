"""gRPC ignores an option whose name it does not know: every name of ours is one of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from grpc._cython import cygrpc

from trephine.client import endpoint
from trephine.server import listener

NAMES = sorted({name for name, _ in (*endpoint.OPTIONS, *listener.OPTIONS)})


@pytest.fixture(scope="module")
def core() -> bytes:
    """The compiled library, in which the names of its options stand."""
    return Path(cygrpc.__file__).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_library_knows_the_option(name, core):
    """A server that had another name for the interval of pings ended calls of minutes: Too many pings."""
    assert name.encode() in core


def test_a_server_lets_clients_ping_as_often_as_they_do():
    """Clients ping during long calls; a server that expects it less often ends the connection."""
    pings = dict(endpoint.OPTIONS)["grpc.keepalive_time_ms"]
    allowed = dict(listener.OPTIONS)["grpc.http2.min_ping_interval_without_data_ms"]
    assert allowed < int(pings)
