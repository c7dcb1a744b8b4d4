"""The replacement sets that can be and are loaded."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trephine.app.jobs.events import forwarded
from trephine.app.models.models import Models
from trephine.app.sets.set_files import weight_bytes
from trephine.app.storage.names import id_in
from trephine.app.storage.roots import ReplacementRoots
from trephine.domain.commands import Progress
from trephine.domain.dataset_circuits import ERRORS, HEADS
from trephine.domain.errors import (
    AdmissionFailedError,
    AlreadyExistsError,
    InvalidRequestError,
    ReplacementNotFoundError,
)
from trephine.domain.replacements import (
    ListReplacementSets,
    LoadReplacementSet,
    ReplacementSetInfo,
    ReplacementSource,
    SetFormat,
    UnloadReplacementSet,
)
from trephine.domain.sites import NEURONS

SetState = Literal["available", "loaded", "lost"]

_SET_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SetEntry:
    """A set on disk, or beside a model."""

    name: str
    model: str | None
    """None for one on disk."""
    state: SetState
    info: ReplacementSetInfo | None
    why: str = ""
    """Why it was lost."""

    @property
    def resource(self) -> str:
        """`models/MODEL/replacements/SET`, or `replacements/SET`."""
        return f"models/{self.model}/replacements/{self.name}" if self.model else f"replacements/{self.name}"


class Replacements:
    """Replacement sets by name. Which ones are loaded beside a model is remembered with the model."""

    def __init__(self, models: Models, roots: ReplacementRoots) -> None:
        self._models = models
        self._roots = roots
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def list(self, model: str | None = None) -> tuple[SetEntry, ...]:
        """Return what is loaded, by model and name, then what is in the roots.

        Args:
            model: Only what is beside this model.

        Raises:
            ModelNotFoundError: If there is no such model.
            ModelNotReadyError: If it is not loaded.
        """
        if model is not None:
            return self._beside(id_in("models", model))
        loaded = [entry for name in self._models.shelves() for entry in self._beside(name)]
        found = [self._available(name) for name in self._roots.names()]
        return (*loaded, *found)

    def entry(self, name: str, model: str | None = None) -> SetEntry:
        """Return one set as it is remembered; no engine is asked.

        Raises:
            ReplacementNotFoundError: If it is neither beside the model nor, without one, in a root.
        """
        if model is None:
            if name not in self._roots.names():
                self._roots.folder(f"replacements/{name}")
            return self._available(name)
        found = {entry.name: entry for entry in self._beside(id_in("models", model))}
        if name not in found:
            known = ", ".join((NEURONS, *found))
            raise ReplacementNotFoundError(
                f"replacement set {name!r} is not loaded beside {model}; there are: {known}. "
                "Name one of these, or load it first",
                replacement=name,
            )
        return found[name]

    def loaded(self, name: str, model: str) -> ReplacementSetInfo:
        """Return a set that is loaded beside a model.

        Raises:
            ReplacementNotFoundError: If it is not, or was lost.
        """
        entry = self.entry(name, model)
        if entry.info is None or entry.state != "loaded":
            raise ReplacementNotFoundError(
                f"replacement set {entry.name} could not be loaded again: {entry.why}. "
                "Unload it, or load it again",
                replacement=entry.name,
            )
        return entry.info

    async def get(self, name: str, model: str | None = None) -> SetEntry:
        """Return one set, with its present residency if its engine runs.

        Raises:
            ReplacementNotFoundError: As `entry` does.
        """
        entry = self.entry(name, model)
        if entry.model is None or entry.state != "loaded" or not self._models.engine(entry.model).alive:
            return entry
        hosted = await self._models.engine(entry.model).run(ListReplacementSets())
        fresh = {info.name: info for info in hosted.sets}
        return SetEntry(name=name, model=entry.model, state="loaded", info=fresh.get(name, entry.info))

    def resolve(
        self,
        source: str,
        set_id: str = "",
        format: SetFormat = SetFormat.AUTO,
        memory_budget_bytes: int | None = None,
        accept_degraded: bool = False,
        allow_unverified: bool = False,
    ) -> ReplacementSource:
        """Turn a name or an absolute folder into a source inside a replacement root.

        Raises:
            ReplacementNotFoundError: If there is no such folder.
            PathDeniedError: If it lies outside the roots.
            InvalidRequestError: If the id is none, or the budget makes no sense.
        """
        folder = self._roots.folder(source)
        if memory_budget_bytes is not None and memory_budget_bytes < 1:
            raise InvalidRequestError("memory_budget_bytes must be at least 1", field="memory_budget_bytes")
        return ReplacementSource(
            name=require_set_id(set_id or _default_name(folder)),
            folder=str(folder),
            format=format,
            memory_budget_bytes=memory_budget_bytes,
            accept_degraded=accept_degraded,
            allow_unverified=allow_unverified,
        )

    async def predict(self, source: ReplacementSource) -> int:
        """Return the bytes of a set's weights in memory, from the headers of its files.

        Raises:
            BrokenReplacementError: If there are no safetensors, or one's header is unreadable.
            UnsafeReplacementError: If the weights are pickles.
        """
        return await asyncio.to_thread(weight_bytes, Path(source.folder))

    async def check(self, model: str, source: ReplacementSource) -> None:
        """Refuse at once a load that cannot succeed.

        Raises:
            ModelNotReadyError: If the model is not loaded.
            TrephineError: As `load` and `predict` do.
        """
        if self._known(model, source) is None:
            await self.predict(source)

    async def load(
        self, model: str, source: ReplacementSource, on_progress: Callable[[Progress], None]
    ) -> ReplacementSetInfo:
        """Load a set beside a model and admit it; one that is loaded already is returned as it is.

        Raises:
            AlreadyExistsError: If the name serves another folder, format or budget.
            AdmissionFailedError: If its figures are not what it claims; it is not loaded.
            TrephineError: Whatever loading raised.
        """
        async with self._turns[model]:
            await self._models.info(model)
            known = self._known(model, source)
            if known is not None:
                return known
            shelf = self._models.shelf(model)
            engine = self._models.engine(model)
            info = await engine.run(LoadReplacementSet(source=source), on_event=forwarded(on_progress))
            await asyncio.to_thread(shelf.keep, source, info)
            return info

    async def unload(self, model: str, name: str) -> None:
        """Forget a set beside a model.

        Raises:
            ReplacementNotFoundError: If it is not loaded.
        """
        async with self._turns[id_in("models", model)]:
            entry = self.entry(name, model)
            engine = self._models.engine(model)
            if entry.state == "loaded" and engine.alive:
                await engine.run(UnloadReplacementSet(name=name))
            await asyncio.to_thread(self._models.shelf(model).drop, name)

    def share(self, folder: Path) -> None:
        """Let a set be read from this folder, by its path."""
        self._roots.share(folder)

    def _known(self, model: str, source: ReplacementSource) -> ReplacementSetInfo | None:
        """The set if it is loaded from this source; an error if the name serves another one."""
        shelf = self._models.shelf(model)
        shelved = shelf.sets.get(source.name)
        if shelved is None or source.name in shelf.lost:
            return None
        before = shelved.source
        same_format = source.format in (SetFormat.AUTO, before.format, shelved.info.format)
        same_budget = source.memory_budget_bytes in (None, before.memory_budget_bytes)
        if source.folder != before.folder or not same_format or not same_budget:
            raise AlreadyExistsError(
                f"the name {source.name} serves another folder, format or memory budget beside {model}; "
                "choose another set_id or unload that one",
                replacement=source.name,
            )
        if shelved.info.degraded and not source.accept_degraded:
            raise AdmissionFailedError(
                f"{source.name} is loaded as degraded: {shelved.info.admission.why}. "
                "Accept that with accept_degraded, or unload it",
                replacement=source.name,
            )
        return shelved.info

    def _beside(self, model: str) -> tuple[SetEntry, ...]:
        shelf = self._models.shelf(model)
        return tuple(
            SetEntry(
                name=name,
                model=model,
                state="lost" if name in shelf.lost else "loaded",
                info=shelved.info,
                why=shelf.lost.get(name, ""),
            )
            for name, shelved in sorted(shelf.sets.items())
        )

    def _available(self, name: str) -> SetEntry:
        return SetEntry(name=name, model=None, state="available", info=None)


_OWN = (NEURONS, HEADS, ERRORS)


def require_set_id(value: str, *, field: str = "set_id") -> str:
    """Return an id that is fit to address features by.

    Raises:
        InvalidRequestError: If it is not, or is the name of the model's own neurons.
    """
    if not _SET_ID.fullmatch(value) or ".." in value or value in _OWN:
        raise InvalidRequestError(
            f"{value!r} cannot name a set: use up to 63 letters, digits, dots, dashes and underscores"
            + (f"; {value} are the model's own" if value in _OWN else ""),
            field=field,
        )
    return value


def _default_name(folder: Path) -> str:
    """The folder's own name, with everything that no set's name may hold replaced."""
    name = re.sub(r"\.\.+", ".", re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name)).strip("-._")
    return name[:63] or "set"
