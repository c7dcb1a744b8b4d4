from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.grpc_server import FakeService, serve
from trephine.client import Trephine, connect


@pytest.fixture
def fake() -> FakeService:
    return FakeService()


@pytest.fixture
def address(fake: FakeService) -> Iterator[str]:
    server, address = serve(fake)
    yield address
    server.stop(grace=None).wait()


@pytest.fixture
def trephine(address: str) -> Iterator[Trephine]:
    with connect(address, token="secret") as client:
        yield client
