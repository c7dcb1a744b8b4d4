"""What all unit tests share: clean processes that start warm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.warm_processes import WarmHost
from trephine.engine import clean_process


@pytest.fixture(scope="session", autouse=True)
def warm_processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let clean processes be forks of one that has imported torch and transformers.

    Integration and e2e tests start them as users do, the real model's exports among them.
    """
    cold = clean_process._start
    host = WarmHost(tmp_path_factory.mktemp("warm"), cold)
    clean_process._start = host.start
    yield
    clean_process._start = cold
    host.close()
