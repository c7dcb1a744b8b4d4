"""Which replacement sets are loaded beside a model, remembered so that they come back with it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import structlog

from trephine.app.storage.records import RecordFolder
from trephine.domain.commands import Progress
from trephine.domain.errors import EngineLostError, ReplacementNotFoundError, TrephineError
from trephine.domain.ports import Engine
from trephine.domain.replacements import (
    LoadReplacementSet,
    ReplacementLayerInfo,
    ReplacementSetInfo,
    ReplacementSource,
    UnloadReplacementSet,
)

Tell = Callable[[Progress], Awaitable[None]]

_log = structlog.get_logger("trephine.shelf")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShelvedSet:
    """A set as it was loaded."""

    source: ReplacementSource
    info: ReplacementSetInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class ShelvedSets:
    """The sets of one model, in the order in which they were loaded."""

    sets: tuple[ShelvedSet, ...]


class Shelf:
    """The sets beside one model.

    After a loss each one is loaded again before the next command runs, and admitted again unless it, the
    model and the probe text are what they were. One whose content has changed meanwhile is not used under
    its old name: its features would mean something else. It is lost, with the reason, until somebody loads
    it again.
    """

    def __init__(self, model: str, records: RecordFolder[ShelvedSets]) -> None:
        self._model = model
        self._records = records
        stored = records.read(model)
        self._sets = {one.source.name: one for one in stored.sets} if stored else {}
        self._lost: dict[str, str] = {}
        self._forgotten = False

    @property
    def sets(self) -> Mapping[str, ShelvedSet]:
        """Every set that was loaded and not unloaded, by name."""
        return MappingProxyType(self._sets)

    @property
    def layers(self) -> Mapping[str, tuple[ReplacementLayerInfo, ...]]:
        """The layers of every such set, by the set's name."""
        return {name: shelved.info.layers for name, shelved in self._sets.items()}

    @property
    def lost(self) -> Mapping[str, str]:
        """Those among them that could not be loaded again, with the reason."""
        return MappingProxyType(self._lost)

    def keep(self, source: ReplacementSource, info: ReplacementSetInfo) -> None:
        """Remember a set that was loaded."""
        if self._forgotten:
            return
        sets = {**self._sets, source.name: ShelvedSet(source=source, info=info)}
        self._write(sets)
        self._lost.pop(source.name, None)

    def drop(self, name: str) -> None:
        """Forget a set."""
        self._write({key: one for key, one in self._sets.items() if key != name})
        self._lost.pop(name, None)

    def forget(self) -> None:
        """Forget all: the model itself was unloaded."""
        self._forgotten = True
        self._sets, self._lost = {}, {}
        self._records.delete(self._model)

    async def restore(self, engine: Engine, tell: Tell) -> None:
        """Load every set beside a model that was just loaded.

        Raises:
            EngineLostError: If the engine is lost meanwhile.
        """
        for done, (name, shelved) in enumerate(tuple(self._sets.items())):
            await tell(Progress(stage="load replacement sets", done=done, total=len(self._sets), detail=name))
            why = await self._restore_one(engine, tell, shelved)
            if why is None:
                self._lost.pop(name, None)
            else:
                _log.error("set_lost", model=self._model, replacement=name, why=why)
                self._lost[name] = why

    def explained(self, error: ReplacementNotFoundError) -> ReplacementNotFoundError:
        """Return the error, with the reason if the set that is missing is a lost one."""
        name = str(error.context.get("replacement", ""))
        if name not in self._lost:
            return error
        message = (
            f"replacement set {name} was loaded beside {self._model} and could not be loaded again: "
            f"{self._lost[name]}. Unload it, or load it again"
        )
        return ReplacementNotFoundError(message, **error.context)

    async def _restore_one(self, engine: Engine, tell: Tell, shelved: ShelvedSet) -> str | None:
        """Load one set again; return why that did not work."""
        name = shelved.source.name
        try:
            command = LoadReplacementSet(source=shelved.source, admitted=shelved.info)
            info = await engine.run(command, on_event=tell)
            if info.content_hash == shelved.info.content_hash:
                self._sets[name] = ShelvedSet(source=shelved.source, info=info)
                return None
            await engine.run(UnloadReplacementSet(name=name))
        except EngineLostError:
            raise
        except TrephineError as error:
            return error.message
        return (
            f"its files have changed since it was loaded (content {info.content_hash[:12]}, was "
            f"{shelved.info.content_hash[:12]})"
        )

    def _write(self, sets: dict[str, ShelvedSet]) -> None:
        self._records.write(self._model, ShelvedSets(sets=tuple(sets.values())))
        self._sets = sets
