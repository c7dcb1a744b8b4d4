"""Feature indexes: built once per set and corpus, one SQLite file each, published by one rename."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from trephine.app.features.feature_sets import FeatureSet, FeatureSets
from trephine.app.features.index_reading import IndexReader
from trephine.app.jobs.events import forwarded
from trephine.app.jobs.prices import block_seconds, product_seconds
from trephine.app.jobs.requests import IndexRequest
from trephine.app.models.models import Models
from trephine.app.storage.artifacts import ArtifactStore
from trephine.app.storage.clock import Clock, SystemClock, timestamp
from trephine.app.storage.files import TEMPORARY, full_disk_is_typed, sweep, sync_folder
from trephine.app.storage.names import id_in, resource
from trephine.app.storage.records import encode
from trephine.app.storage.results import newest_first
from trephine.domain.commands import Progress
from trephine.domain.errors import CorruptRecordError, FeatureIndexNotFoundError
from trephine.domain.feature_index import bytes_per_feature
from trephine.domain.features import BUILT_IN, FeatureIndexInfo

COLLECTION = "featureIndexes"
_UNFINISHED = (".building", ".building-wal", ".building-shm", ".corpus")
_KEEP_SECONDS = 7 * 24 * 3600.0
"""An index that was cancelled can be gone on with for a week."""
_BUILT_IN_BYTES = 8_000
_BYTES_PER_TOKEN = 4
_OVERHEAD_SECONDS, _ENTERED_SECONDS = 1.0, 6e-8
"""Of every index; of a feature at a token: its activation is compared with those that are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredIndex:
    """A finished index."""

    name: str
    """`featureIndexes/ID`."""
    create_time: str
    size_bytes: int
    info: FeatureIndexInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedIndex:
    """What building an index would take."""

    features: FeatureSet
    layers: tuple[int, ...]
    tokens: int
    seconds: float
    memory_bytes: int
    """Beside the model and the set."""
    disk_bytes: int


class FeatureIndexes:
    """Indexes by name. Names may be `featureIndexes/ID` or `ID`."""

    def __init__(
        self,
        folder: Path,
        *,
        models: Models,
        sets: FeatureSets,
        artifacts: ArtifactStore,
        clock: Clock | None = None,
    ) -> None:
        self._folder = folder
        self._models = models
        self._sets = sets
        self._artifacts = artifacts
        self._building: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(folder)
        self._forget_stale((clock or SystemClock()).now().timestamp())

    async def check(self, request: IndexRequest) -> FeatureSet:
        """Refuse at once what cannot be indexed; return the set.

        Raises:
            ReplacementNotFoundError: If the set is not loaded.
            LayerOutOfRangeError: If it does not cover a layer.
            ResourceNotFoundError: If the corpus was not uploaded.
        """
        found = await self._sets.get(request.model, request.command.replacement)
        for number, layer in enumerate(request.command.layers):
            found.require_layer(layer, field=f"layers[{number}]")
        if request.corpus:
            await self._artifacts.stat(request.corpus)
        return found

    async def predict(self, request: IndexRequest) -> PredictedIndex:
        """Check a request and say what it would take.

        Raises:
            TrephineError: As `check` does; `OverBudgetError` if it would be refused.
        """
        found, command = await self.check(request), request.command
        cost = await self._models.predict_command(request.model, command)
        size = (await self._artifacts.stat(request.corpus)).size if request.corpus else _BUILT_IN_BYTES
        tokens = min(command.max_tokens, size // _BYTES_PER_TOKEN)
        layers = command.layers or tuple(found.sizes)
        features = sum(found.sizes[layer] for layer in layers)
        held = features * bytes_per_feature(kept=command.contexts_per_feature, window=command.window)
        seconds = _OVERHEAD_SECONDS + block_seconds(tokens, found.model)
        seconds += product_seconds(2.0 * tokens * features * found.model.d_model)
        return PredictedIndex(
            features=found,
            layers=layers,
            tokens=tokens,
            seconds=seconds + tokens * features * _ENTERED_SECONDS,
            memory_bytes=cost.memory_bytes,
            disk_bytes=held + tokens * _BYTES_PER_TOKEN,
        )

    async def run(self, request: IndexRequest, on_progress: Callable[[Progress], None]) -> StoredIndex:
        """Build an index; one that exists is no work, one that was begun is gone on with.

        Raises:
            BrokenCorpusError: If the corpus is no text, naming line and byte.
            DiskFullError: If there is no room; starting it again goes on where it was.
            TrephineError: Whatever else building raised.
        """
        found = await self.check(request)
        index_id = _index_id(found, request)
        async with self._building[index_id]:
            if not self._path(index_id).exists():
                corpus = await self._corpus(request.corpus)
                partial = self._folder / f"{index_id}.building"
                command = replace(
                    request.command, corpus=corpus, corpus_name=_name(request), path=str(partial)
                )
                await self._models.engine(request.model).run(command, on_event=forwarded(on_progress))
                await asyncio.to_thread(_publish, partial, self._path(index_id))
                if corpus:
                    Path(corpus).unlink(missing_ok=True)
        return await self.get(index_id)

    async def get(self, name: str) -> StoredIndex:
        """Return an index.

        Raises:
            FeatureIndexNotFoundError: If there is none of that name.
            CorruptRecordError: If its file cannot be read.
        """
        path = self._path(id_in(COLLECTION, name))
        if not path.exists():
            raise FeatureIndexNotFoundError(
                f"there is no feature index {path.stem}", name=resource(COLLECTION, path.stem)
            )
        return await asyncio.to_thread(_stored, path)

    async def list(self) -> tuple[StoredIndex, ...]:
        """Return every index that can be read, newest first."""
        found = []
        for path in self._folder.glob("*.sqlite"):
            try:
                found.append(await asyncio.to_thread(_stored, path))
            except (CorruptRecordError, FileNotFoundError):
                continue
        return newest_first(found)

    async def delete(self, name: str) -> None:
        """Forget an index.

        Raises:
            FeatureIndexNotFoundError: If there is none of that name.
        """
        path = self._path(id_in(COLLECTION, name))
        if not path.exists():
            raise FeatureIndexNotFoundError(
                f"there is no feature index {path.stem}", name=resource(COLLECTION, path.stem)
            )
        path.unlink()

    async def covering(
        self, features: FeatureSet, layer: int | None = None, name: str = ""
    ) -> tuple[StoredIndex, IndexReader] | None:
        """Return the named index, or the newest one of a set that covers a layer; None if there is none.

        Raises:
            FeatureIndexNotFoundError: If the named one does not exist, or is of another set.
        """
        for index in (await self.get(name),) if name else await self.list():
            if index.info.content_hash != features.content_hash:
                continue
            if layer is None or layer in index.info.layers:
                return index, IndexReader(self._path(id_in(COLLECTION, index.name)))
        if name:
            where = "" if layer is None else f", layer {layer}"
            raise FeatureIndexNotFoundError(f"{name} is no index of {features.name}{where}", name=name)
        return None

    async def _corpus(self, artifact: str) -> str:
        """Lay an uploaded corpus where an engine can stream it from; empty for the built-in one."""
        if not artifact:
            return ""
        path = self._folder / f"{id_in('artifacts', artifact)}.corpus"
        if not path.exists():
            temporary = self._folder / f"{TEMPORARY}{uuid4().hex}"
            try:
                with full_disk_is_typed("the corpus"), temporary.open("wb") as file:
                    async for piece in self._artifacts.chunks(artifact):
                        await asyncio.to_thread(file.write, piece)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)
        return str(path)

    def _forget_stale(self, now: float) -> None:
        """Remove what was begun and not gone on with for long."""
        begun = (path for suffix in _UNFINISHED for path in self._folder.glob(f"*{suffix}"))
        for path in begun:
            if now - path.stat().st_mtime > _KEEP_SECONDS:
                path.unlink(missing_ok=True)

    def _path(self, index_id: str) -> Path:
        return self._folder / f"{index_id}.sqlite"


def _name(request: IndexRequest) -> str:
    return request.command.corpus_name or (request.corpus if request.corpus else BUILT_IN)


def _index_id(features: FeatureSet, request: IndexRequest) -> str:
    """Derive an index's name from all that its content depends on, but no name that people choose."""
    plain = replace(request.command, corpus=request.corpus, corpus_name="", replacement="", path="")
    return hashlib.sha256(features.content_hash.encode() + encode(plain)).hexdigest()[:32]


def _publish(partial: Path, final: Path) -> None:
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.rename(partial, final)
    sync_folder(final.parent)


def _stored(path: Path) -> StoredIndex:
    status = path.stat()
    return StoredIndex(
        name=resource(COLLECTION, path.stem),
        create_time=timestamp(datetime.fromtimestamp(status.st_mtime, UTC)),
        size_bytes=status.st_size,
        info=IndexReader(path).info(),
    )
