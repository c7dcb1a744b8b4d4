from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import typer.main

from tests.fakes.grpc_server import FakeService, serve
from trephine.client import Trephine, connect

_BUILT_EACH_TIME = typer.main.get_command
_BUILT_ONCE = cache(_BUILT_EACH_TIME)


@pytest.fixture(scope="module", autouse=True)
def commands_built_once() -> Iterator[None]:
    """Let the command line be built once: Typer evaluates all signatures each time that it is run."""
    typer.main.get_command = _BUILT_ONCE
    yield
    typer.main.get_command = _BUILT_EACH_TIME


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
