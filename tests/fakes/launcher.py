"""A launcher of fake engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.fakes.engine import FakeEngine
from trephine.domain.errors import TrephineError


class FakeLauncher:
    """Implements the `EngineLauncher` port. `engines` holds every engine it launched, in order."""

    def __init__(self, scripts: Mapping[type, Any] | None = None) -> None:
        self.scripts: dict[type, Any] = dict(scripts or {})
        self.engines: list[FakeEngine] = []
        self.failure: TrephineError | None = None

    async def launch(self) -> FakeEngine:
        """Return a fresh engine that shares the launcher's scripts."""
        if self.failure is not None:
            raise self.failure
        engine = FakeEngine()
        engine.scripts = self.scripts
        self.engines.append(engine)
        return engine

    @property
    def latest(self) -> FakeEngine:
        """The engine launched last."""
        return self.engines[-1]
