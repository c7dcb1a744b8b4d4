"""Models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trephine.domain.commands import Progress
from trephine.domain.errors import InternalError
from trephine.domain.models import DType, ModelInfo, ModelSource
from trephine.domain.ports import Engine

ModelState = Literal["available", "loading", "loaded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """A model in a root, or loaded."""

    name: str
    state: ModelState
    info: ModelInfo | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedLoad:
    """What loading would take, read from the files' headers."""

    n_parameters: int
    memory_bytes: int


class Models:
    """The models that can be, are being and are loaded."""

    def list(self) -> tuple[ModelEntry, ...]:
        """By name."""
        raise InternalError("not available yet")

    def get(self, name: str) -> ModelEntry:
        """One model."""
        raise InternalError("not available yet")

    def engine(self, name: str) -> Engine:
        """The engine of a loaded model; it relaunches itself when it was lost, and admits by cost."""
        raise InternalError("not available yet")

    async def info(self, name: str) -> ModelInfo:
        """What is loaded; loads it again if the server was restarted meanwhile."""
        raise InternalError("not available yet")

    def resolve(
        self,
        source: str,
        model_id: str = "",
        dtype: DType = "float32",
        device: str = "cpu",
        adapter: str | None = None,
    ) -> ModelSource:
        """Turn a name or folder into a source inside a model root."""
        raise InternalError("not available yet")

    async def predict(self, source: ModelSource) -> PredictedLoad:
        """For validate_only: check the folder, predict memory; OverBudgetError."""
        raise InternalError("not available yet")

    async def load(self, source: ModelSource, on_progress: Callable[[Progress], None]) -> ModelInfo:
        """Load; concurrent loads of one source share one engine."""
        raise InternalError("not available yet")

    async def unload(self, name: str) -> None:
        """End a model's engine."""
        raise InternalError("not available yet")

    def add_root(self, path: Path) -> None:
        """Let models be loaded from this folder too."""
        raise InternalError("not available yet")

    async def close(self) -> None:
        """End every engine."""
        raise InternalError("not available yet")
