"""What all unit tests share: clean processes that start warm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.warm_processes import COLD, WarmCleanProcesses, WarmHost
from trephine.engine.certificates import clean_process


@pytest.fixture(scope="module", autouse=True)
def warm_clean_processes(clean_host: WarmHost) -> Iterator[None]:
    """Let clean processes be forks of one that has imported torch and transformers.

    Integration and e2e tests start them as users do, the real model's exports among them.
    """
    clean_process._start = WarmCleanProcesses(clean_host).start
    yield
    clean_process._start = COLD
