"""The models that can be, are being and are loaded."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from trephine.app.jobs.admission import Admission
from trephine.app.jobs.costs import Cost, predict_beside
from trephine.app.jobs.shelf import Shelf, ShelvedSets
from trephine.app.models.hosting import Berth, BerthedEngine
from trephine.app.storage.checkpoints import count_parameters
from trephine.app.storage.names import id_in
from trephine.app.storage.records import RecordFolder
from trephine.app.storage.roots import ModelRoots
from trephine.domain.commands import Command, Progress
from trephine.domain.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    ModelNotFoundError,
    ModelNotReadyError,
    OverBudgetError,
)
from trephine.domain.models import DType, ModelInfo, ModelSource
from trephine.domain.ports import Engine, EngineLauncher

ModelState = Literal["available", "loading", "loaded"]

_ITEM_BYTES: dict[DType, int] = {"float32": 4, "bfloat16": 2, "float64": 8}
_OVERHEAD_BYTES = 512 << 20
"""An engine's interpreter and libraries."""


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
    """Models by name. Which ones were loaded is remembered, so that the next server can reload them.

    Args:
        launcher: Starts engines.
        roots: Folders that models are read from.
        export_root: Folder that `exports/NAME` is read from.
        remembered: Folder for the sources of loaded models and of the replacement sets beside them.
        memory_budget_bytes: For loading and, apart, for each command; None: what the machine has free
            for loading, no bound for commands.
    """

    def __init__(
        self,
        *,
        launcher: EngineLauncher,
        roots: Iterable[Path],
        export_root: Path,
        remembered: Path,
        memory_budget_bytes: int | None = None,
    ) -> None:
        self._launcher = launcher
        self._roots = ModelRoots(roots, export_root=export_root)
        self._sources = RecordFolder(remembered, ModelSource)
        self._shelves = RecordFolder(remembered / "replacements", ShelvedSets)
        self._budget = memory_budget_bytes
        self._berths: dict[str, Berth] = {}

    def list(self) -> tuple[ModelEntry, ...]:
        """Return every model in the roots and every loaded one, by name."""
        names = {*self._roots.names(), *self._berths}
        return tuple(self._entry(name) for name in sorted(names))

    def get(self, name: str) -> ModelEntry:
        """Return one model.

        Raises:
            ModelNotFoundError: If it is neither loaded nor in a root.
        """
        name = id_in("models", name)
        if name not in self._berths and name not in self._roots.names():
            raise self._unknown(name)
        return self._entry(name)

    def engine(self, name: str) -> Engine:
        """Return a loaded model's engine. It admits by cost, and comes back after a loss.

        A model that an earlier server had loaded is loaded again with the first command.

        Raises:
            ModelNotReadyError: If the model has not been loaded.
            ModelNotFoundError: If there is no such model.
        """
        return BerthedEngine(self._berth(id_in("models", name)))

    def shelf(self, name: str) -> Shelf:
        """Return what is, and comes back, beside a loaded model. Nothing is loaded for that.

        Raises:
            ModelNotReadyError: If the model has not been loaded.
            ModelNotFoundError: If there is no such model.
        """
        return self._berth(id_in("models", name)).shelf

    def shelves(self) -> dict[str, Shelf]:
        """Return the shelf of every model that is loaded or comes back, by model name."""
        return {name: self._berth(name).shelf for name in sorted({*self._berths, *self._sources.ids()})}

    async def info(self, name: str) -> ModelInfo:
        """Return what is loaded; a model of an earlier server is loaded again first.

        Raises:
            ModelNotReadyError: If the model has not been loaded.
            ModelNotFoundError: If there is no such model.
        """
        _, info = await self._berth(id_in("models", name)).ready()
        return info

    def resolve(
        self,
        source: str,
        model_id: str = "",
        dtype: DType = "float32",
        device: str = "cpu",
        adapter: str | None = None,
        revision: str | None = None,
    ) -> ModelSource:
        """Turn a name or an absolute folder into a source inside a model root.

        A revision becomes the commit that it means now; the source stays at it.

        Raises:
            ModelNotFoundError: If there is no such folder, or no such revision in it.
            PathDeniedError: If it lies outside the roots.
            InvalidRequestError: If dtype, device, name or revision make no sense.
        """
        dtype = dtype or "float32"
        device = device or "cpu"
        if dtype not in _ITEM_BYTES:
            raise InvalidRequestError(f"dtype must be one of {', '.join(_ITEM_BYTES)}", field="dtype")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
            raise InvalidRequestError("device must be cpu, cuda or cuda:N", field="device")
        found = self._roots.find(source, revision)
        return ModelSource(
            name=id_in("models", model_id) if model_id else _default_name(found.name),
            folder=str(found.folder),
            dtype=dtype,
            device=device,
            adapter=str(self._roots.find(adapter).folder) if adapter else None,
            revision=found.revision,
        )

    async def predict(self, source: ModelSource) -> PredictedLoad:
        """Check a folder and predict what loading it takes, from file headers alone.

        Raises:
            BrokenCheckpointError: If something is missing.
            UnsafeCheckpointError: If the weights are pickles.
            OverBudgetError: If it will not fit.
        """
        n_parameters = await asyncio.to_thread(count_parameters, Path(source.folder))
        memory = n_parameters * _ITEM_BYTES[source.dtype]
        if source.device == "cpu":
            self._require_room(memory + _OVERHEAD_BYTES)
        return PredictedLoad(n_parameters=n_parameters, memory_bytes=memory)

    async def predict_command(self, name: str, command: Command[Any, Any]) -> Cost:
        """Predict what a command would cost, for `validate_only`.

        Raises:
            OverBudgetError: If it would be refused.
        """
        berth = self._berth(id_in("models", name))
        _, info = await berth.ready()
        cost = predict_beside(command, info, berth.shelf.layers)
        (berth.interactive if command.interactive else berth.batch).check(cost)
        return cost

    async def check(self, source: ModelSource) -> None:
        """Refuse at once a load that cannot succeed.

        Raises:
            AlreadyExistsError: If the name serves another source.
            TrephineError: As `predict` does.
        """
        if not self._require_same(source):
            await self.predict(source)

    async def load(self, source: ModelSource, on_progress: Callable[[Progress], None]) -> ModelInfo:
        """Load a model into an engine of its own; loading it again is no work.

        Concurrent loads of one source share one engine; it ends when all of them are cancelled.

        Raises:
            AlreadyExistsError: If the name serves another source.
            TrephineError: Whatever loading raised.
        """
        self._require_same(source)
        known = self._berths.get(source.name)
        berth = known or self._berths.setdefault(source.name, self._new_berth(source))
        try:
            _, info = await berth.ready(on_progress)
        except BaseException:
            if not berth.loaded and not berth.loading and self._berths.get(source.name) is berth:
                del self._berths[source.name]
            raise
        await asyncio.to_thread(self._sources.write, source.name, source)
        return info

    async def unload(self, name: str) -> None:
        """End a model's engine and forget that it was loaded, and what was beside it.

        Raises:
            ModelNotReadyError: If it is not loaded.
            ModelNotFoundError: If there is no such model.
        """
        name = id_in("models", name)
        berth = self._berth(name)
        self._berths.pop(name, None)
        self._sources.delete(name)
        berth.shelf.forget()
        await berth.close()

    def add_root(self, path: Path) -> None:
        """Let models be read from this folder too."""
        self._roots.add(path)

    async def close(self) -> None:
        """End every engine; what was loaded stays remembered."""
        berths, self._berths = list(self._berths.values()), {}
        await asyncio.gather(*(berth.close() for berth in berths))

    def _berth(self, name: str) -> Berth:
        berth = self._berths.get(name)
        if berth is not None:
            return berth
        source = self._sources.read(name)
        if source is not None:
            return self._berths.setdefault(name, self._new_berth(source))
        if name in self._roots.names():
            raise ModelNotReadyError(f"the model {name} is not loaded; load it first", model=name)
        raise self._unknown(name)

    def _new_berth(self, source: ModelSource) -> Berth:
        if self._sources.read(source.name) not in (None, source):
            self._shelves.delete(source.name)  # they were beside another model of that name
        return Berth(
            source,
            self._launcher,
            Shelf(source.name, self._shelves),
            interactive=Admission(memory_budget_bytes=self._budget),
            batch=Admission(memory_budget_bytes=self._budget, tokens_in_flight=1 << 20),
        )

    def _require_same(self, source: ModelSource) -> bool:
        """True if the source is loaded or loading under its name; an error if another one is."""
        berth = self._berths.get(source.name)
        if berth is None or not (berth.loaded or berth.loading):
            if berth is not None and berth.source != source:
                del self._berths[source.name]
            return False
        if berth.source != source:
            raise AlreadyExistsError(
                f"the name {source.name} serves another model, revision, dtype, device or adapter; choose "
                "another model_id or unload that one",
                model=source.name,
            )
        return True

    def _require_room(self, needed: int) -> None:
        budget = self._budget if self._budget is not None else psutil.virtual_memory().available
        if needed > budget:
            raise OverBudgetError(
                f"loading takes about {needed >> 20} MiB and {budget >> 20} MiB are free; unload a model or "
                "load it as bfloat16",
                needed_bytes=needed,
                budget_bytes=budget,
            )

    def _entry(self, name: str) -> ModelEntry:
        berth = self._berths.get(name)
        if berth is None:
            return ModelEntry(name=name, state="available", info=None)
        if berth.loaded:
            return ModelEntry(name=name, state="loaded", info=berth.info)
        return ModelEntry(name=name, state="loading" if berth.loading else "available", info=None)

    def _unknown(self, name: str) -> ModelNotFoundError:
        known = ", ".join(entry.name for entry in self.list()) or "none"
        return ModelNotFoundError(f"there is no model {name}; there are: {known}", model=name)


def _default_name(folder: str) -> str:
    """A folder's own name, with everything that no resource name may hold replaced."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder).strip("-._")
    return name[:63] or "model"
