"""Fitting replacement sets: corpus and checkpoints in the state folder, the set published by one rename."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path

from trephine.app.jobs.events import forwarded
from trephine.app.jobs.requests import FitSetRequest
from trephine.app.models.models import Models
from trephine.app.sets.replacements import require_set_id
from trephine.app.storage.artifacts import ArtifactStore
from trephine.app.storage.clock import Clock, SystemClock, timestamp
from trephine.app.storage.files import TEMPORARY, carried_through, full_disk_is_typed, publish_folder
from trephine.app.storage.names import resource
from trephine.app.storage.records import RecordFolder, encode
from trephine.app.storage.results import stored_result
from trephine.app.storage.roots import ReplacementRoots
from trephine.app.storage.uploaded_texts import nul_found
from trephine.domain.commands import Progress
from trephine.domain.errors import AlreadyExistsError
from trephine.domain.fitting import FitRecipe, FitReplacementSet, FitReport, PredictedFit, PredictFit

COLLECTION = "fits"

_KEEP_SECONDS = 14 * 24 * 3600.0
"""Checkpoints that no fit has continued for two weeks are removed."""

_SUFFIXES = {"application/jsonl": ".jsonl", "application/x-ndjson": ".jsonl"}
_TEXTS = "UTF-8 text, or JSONL with a `text` column"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFit:
    """A fit with its resource name, `fits/ID`, and what it published."""

    name: str
    set_id: str
    create_time: str
    report: FitReport


class Fits:
    """Fits. Names may be `fits/ID` or `ID`.

    The set is built in a folder of the operation's own in the first replacement root, the report is
    stored, then the folder is renamed to its name: the last act. A report whose set never appeared is none.
    Checkpoints lie under a digest of model, recipe and corpus, so that a second operation of the same
    kind continues what a failed or killed one has kept.
    """

    def __init__(
        self,
        folder: Path,
        *,
        work: Path,
        roots: ReplacementRoots,
        models: Models,
        artifacts: ArtifactStore,
        clock: Clock | None = None,
    ) -> None:
        self._records = RecordFolder(folder, StoredFit)
        self._work = work
        self._roots = roots
        self._models = models
        self._artifacts = artifacts
        self._clock = clock or SystemClock()
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._forget_stale()

    def sweep(self, operations: Container[str]) -> None:
        """Remove what interrupted operations of this server left in the replacement root; at start only."""
        for leftover in self._roots.publishing.glob(f"{TEMPORARY}*"):
            if leftover.name.removeprefix(TEMPORARY) in operations:
                shutil.rmtree(leftover, ignore_errors=True)

    async def validate(self, request: FitSetRequest) -> PredictedFit:
        """Check a fit as `check` does and predict what it would take; a fit without a name is not named yet.

        Raises:
            TrephineError: As `check` does.
        """
        if request.set_id:
            require_set_id(request.set_id)
            self._require_free(request.set_id)
        await self._require_corpus(request)
        return await self.predict(request.model, request.recipe, own_samples=not request.corpus)

    async def predict(self, model: str, recipe: FitRecipe, *, own_samples: bool) -> PredictedFit:
        """Predict what a fit would take, from a given corpus or the model's own samples.

        Raises:
            TrephineError: If the recipe does not suit the model.
        """
        return await self._models.engine(model).run(PredictFit(recipe=recipe, own_samples=own_samples))

    async def check(self, request: FitSetRequest, *, operation_id: str) -> None:
        """Refuse at once a fit whose name is taken, or whose model or corpus is not there.

        Raises:
            AlreadyExistsError: If the name is taken.
            ResourceNotFoundError: If the corpus was not uploaded.
            TrephineError: As `predict` does.
        """
        require_set_id(request.set_id)
        if self._published_by(operation_id) is None:
            await self.validate(request)

    async def run(
        self, request: FitSetRequest, on_progress: Callable[[Progress], None], *, fit_id: str
    ) -> StoredFit:
        """Fit and publish; an operation that has published already returns what it did.

        Raises:
            AlreadyExistsError: If the name is taken by another folder.
            FitFailedError: If fitting ended without a set; what it had checkpointed is kept.
            DiskFullError: If there is no room; checkpoints are kept, nothing is published.
        """
        async with self._turns[request.set_id]:
            done = self._published_by(fit_id)
            if done is not None:
                return done
            self._require_free(request.set_id)
            staging = self._roots.publishing / f"{TEMPORARY}{fit_id}"
            await asyncio.to_thread(shutil.rmtree, staging, ignore_errors=True)
            try:
                report, kept = await self._fit(request, staging, on_progress)
                stored = await carried_through(self._publish, request, report, staging, fit_id)
            finally:
                await asyncio.to_thread(shutil.rmtree, staging, ignore_errors=True)
            await asyncio.to_thread(shutil.rmtree, kept, ignore_errors=True)
            return stored

    async def get(self, name: str) -> StoredFit:
        """Return a finished fit; its set may have been moved or removed since.

        Raises:
            ResourceNotFoundError: If there is none of that name.
        """
        return await stored_result(self._records, COLLECTION, name, what="fit")

    async def _fit(
        self, request: FitSetRequest, staging: Path, on_progress: Callable[[Progress], None]
    ) -> tuple[FitReport, Path]:
        kept = self._work / await self._key(request)
        checkpoints = kept / "checkpoints"
        checkpoints.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.utime(kept)
        corpus = await self._corpus(request, kept)
        command = FitReplacementSet(
            recipe=request.recipe,
            corpus=None if corpus is None else str(corpus),
            corpus_name=request.corpus_name,
            folder=str(staging),
            checkpoints=str(checkpoints),
        )
        return await self._models.engine(request.model).run(command, on_event=forwarded(on_progress)), kept

    def _publish(self, request: FitSetRequest, report: FitReport, staging: Path, fit_id: str) -> StoredFit:
        stored = StoredFit(
            name=resource(COLLECTION, fit_id),
            set_id=request.set_id,
            create_time=timestamp(self._clock.now()),
            report=report,
        )
        self._require_free(request.set_id)
        self._records.write(fit_id, stored)
        try:
            with full_disk_is_typed(request.set_id):
                publish_folder(staging, self._target(request.set_id))
        except Exception:
            if staging.is_dir():  # it got no name: the record would tell of a fit that did not end
                self._records.delete(fit_id)
                self._require_free(request.set_id)  # did somebody take it meanwhile?
            raise
        return stored

    async def _key(self, request: FitSetRequest) -> str:
        info = await self._models.info(request.model)
        what = (info.weight_hash.encode(), encode(request.recipe), request.corpus.encode())
        return hashlib.sha256(b"\0".join(what)).hexdigest()[:32]

    async def _require_corpus(self, request: FitSetRequest) -> None:
        if request.corpus.startswith("artifacts/"):
            await self._artifacts.stat(request.corpus)
        elif request.corpus:
            self._roots.folder(request.corpus)

    async def _corpus(self, request: FitSetRequest, kept: Path) -> Path | None:
        """A path that the engine can read: the uploaded text copied out of the store, or the folder."""
        if not request.corpus:
            return None
        if not request.corpus.startswith("artifacts/"):
            return self._roots.folder(request.corpus)
        info = await self._artifacts.stat(request.corpus)
        media_type = info.media_type.partition(";")[0].strip()
        path = kept / f"corpus{_SUFFIXES.get(media_type, '.txt')}"
        if not path.exists() or path.stat().st_size != info.size:
            await self._copy(request.corpus, path)
        return path

    async def _copy(self, artifact: str, path: Path) -> None:
        temporary = path.with_name(f"{TEMPORARY}{path.name}")
        with full_disk_is_typed("the corpus"), temporary.open("wb") as file:
            byte, line = 0, 1
            async for piece in self._artifacts.chunks(artifact):
                found = piece.find(0)
                if found >= 0:
                    line += piece.count(b"\n", 0, found)
                    raise nul_found("corpus", "corpus", byte=byte + found, line=line, instead=_TEXTS)
                byte, line = byte + len(piece), line + piece.count(b"\n")
                await asyncio.to_thread(file.write, piece)
        os.replace(temporary, path)

    def _published_by(self, fit_id: str) -> StoredFit | None:
        stored = self._records.read(fit_id)
        return stored if stored is not None and self._target(stored.set_id).is_dir() else None

    def _require_free(self, set_id: str) -> None:
        # One in another root would not be overwritten, but hidden: the first root is looked into first.
        if os.path.lexists(self._target(set_id)) or set_id in self._roots.names():
            raise AlreadyExistsError(
                f"{set_id} exists in a replacement root, nothing is overwritten; choose another name",
                field="set_id",
            )

    def _target(self, set_id: str) -> Path:
        return self._roots.publishing / set_id

    def _forget_stale(self) -> None:
        self._work.mkdir(mode=0o700, parents=True, exist_ok=True)
        now = self._clock.now().timestamp()
        for folder in self._work.iterdir():
            if folder.is_dir() and now - folder.stat().st_mtime > _KEEP_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
