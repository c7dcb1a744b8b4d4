"""What integration tests share: engines of servers in this process start warm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.warm_engines import COLD, MODULES, WarmEngines
from tests.warm_processes import WarmHost
from trephine.ipc import process

STARTED_AS_USERS_DO = frozenset({"test_engine_process.py", "test_server_engine.py"})
"""Files whose point is an engine's process itself."""


@pytest.fixture(scope="session")
def engine_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmHost]:
    """What engines are forked off."""
    host = WarmHost(tmp_path_factory.mktemp("engines"), "-P", process.child_environment(), MODULES)
    yield host
    host.close()


@pytest.fixture(scope="module", autouse=True)
def warm_engines(
    request: pytest.FixtureRequest, engine_host: WarmHost, clean_host: WarmHost
) -> Iterator[None]:
    """Let engines be forks of one that has imported its handlers.

    E2e tests start engines, and servers, as users do.
    """
    if request.path.name not in STARTED_AS_USERS_DO:
        process._spawn = WarmEngines(engine_host, clean_host).spawn
    yield
    process._spawn = COLD
