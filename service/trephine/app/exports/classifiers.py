"""Heads of reports published on exports of their edits, in stock form."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from trephine.app.edits.edits import Edits
from trephine.app.exports.exports import Exports
from trephine.app.exports.published_files import file_chunks, name_taken, publish_recorded
from trephine.app.jobs.events import forwarded
from trephine.app.jobs.requests import ExportClassifierRequest
from trephine.app.models.models import Models
from trephine.app.spurious.spurious_removals import SpuriousRemovals, StoredRemoval
from trephine.app.storage.files import TEMPORARY, carried_through
from trephine.app.storage.names import id_in, require_new_id, resource
from trephine.app.storage.records import RecordFolder
from trephine.domain.classifier_exports import (
    ClassifierExport,
    ExportClassifier,
    require_plain_text,
    require_stock,
    reward_threshold,
)
from trephine.domain.commands import Progress
from trephine.domain.edits import Edit
from trephine.domain.errors import (
    InvalidRequestError,
    ParentChangedError,
    ResourceNotFoundError,
)
from trephine.domain.exports import ExportedFile
from trephine.domain.interventions import FeatureTarget

COLLECTION = "classifiers"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredClassifier:
    """A published classifier and the operation that published it."""

    operation_id: str
    classifier: ClassifierExport


class Classifiers:
    """Published classifiers, beside the exports in the export root."""

    def __init__(
        self,
        folder: Path,
        *,
        export_root: Path,
        models: Models,
        edits: Edits,
        exports: Exports,
        removals: SpuriousRemovals,
    ) -> None:
        self._records = RecordFolder(folder, StoredClassifier)
        self._root = export_root.expanduser().resolve()
        self._models, self._edits, self._exports, self._removals = models, edits, exports, removals

    async def check(self, request: ExportClassifierRequest, *, operation_id: str) -> None:
        """Refuse at once what cannot be published.

        Raises:
            ExportTargetExistsError: If the name is taken.
            ResourceNotFoundError: If there is no such report or export.
            ParentChangedError: If the export is not one of the report's edit.
            HeadNotStockError: If the head has no stock form.
        """
        require_new_id(request.classifier_id, field="classifier_id")
        if self._published_by(request.classifier_id, operation_id) is None:
            self._require_free(request.classifier_id)
            await self._command(request, self._root)

    async def run(
        self, request: ExportClassifierRequest, on_progress: Callable[[Progress], None], *, operation_id: str
    ) -> ClassifierExport:
        """Write, reload, compare and publish by one rename.

        Raises:
            HeadNotStockError: If the head has no stock form.
            GateMissedError: If the reloaded folder decides otherwise.
            TrephineError: As `check` does.
        """
        done = self._published_by(request.classifier_id, operation_id)
        if done is not None:
            return done
        self._require_free(request.classifier_id)
        staging = self._root / f"{TEMPORARY}{operation_id}"
        await asyncio.to_thread(shutil.rmtree, staging, ignore_errors=True)
        try:
            stored, command = await self._command(request, staging)
            made = await self._models.engine(stored.found.model).run(command, on_event=forwarded(on_progress))
            return await carried_through(self._publish, request.classifier_id, made, staging, operation_id)
        finally:
            await asyncio.to_thread(shutil.rmtree, staging, ignore_errors=True)

    async def get(self, name: str) -> ClassifierExport:
        """Return a published classifier.

        Raises:
            ResourceNotFoundError: If there is none of that name.
        """
        identifier = id_in(COLLECTION, name)
        stored = await asyncio.to_thread(self._records.read, identifier)
        if stored is None or not (self._root / identifier).is_dir():
            raise ResourceNotFoundError(
                f"there is no classifier {identifier}", name=resource(COLLECTION, identifier)
            )
        return stored.classifier

    async def file_chunks(self, name: str, path: str, offset: int = 0) -> AsyncIterator[tuple[int, bytes]]:
        """Read a listed file in pieces of at most 512 KiB, each with where it begins.

        Raises:
            ResourceNotFoundError: If there is no such classifier, or it does not list the file.
            InvalidRequestError: If the offset lies outside it.
            CheckpointUnverifiedError: If the file is not the one that was published any more.
        """
        found = await self.get(name)
        folder, full = self._root / id_in(COLLECTION, name), resource(COLLECTION, found.name)
        files = [
            ExportedFile(path=one, size=size, sha256=found.files[one]) for one, size in found.sizes.items()
        ]
        async for piece in file_chunks(folder, files, path, offset, name=full):
            yield piece

    async def _command(
        self, request: ExportClassifierRequest, target: Path
    ) -> tuple[StoredRemoval, ExportClassifier]:
        stored = await self._removals.get(request.removal)
        threshold = reward_threshold(stored.found.decision, stored.found.head)
        require_stock(stored.found.head, reward=threshold is not None)
        require_plain_text(stored.found.decision)
        parent = await self._parent(stored, request.export)
        removed = tuple(
            one.target.feature for one in stored.found.interventions if isinstance(one.target, FeatureTarget)
        )
        command = ExportClassifier(
            name=request.classifier_id,
            removal=stored.name,
            export=resource("exports", request.export) if request.export else "",
            parent=parent,
            folder=str(target),
            head=stored.found.head,
            threshold=threshold,
            removed=removed,
            texts=request.texts,
        )
        return stored, command

    async def _parent(self, stored: StoredRemoval, export: str | None) -> str:
        """Return the folder whose weights are taken; empty: the model's own."""
        if export is None:
            if stored.found.interventions:
                raise InvalidRequestError(
                    f"{stored.name} removed {stored.found.chosen} features: export its edit first, and name "
                    "that export",
                    field="export",
                )
            return ""
        if not (stored.edit or stored.unmade):
            raise InvalidRequestError(_no_edit(stored), field="export")
        found = await self._exports.get(export)
        edit = await self._edits.get(stored.edit or found.certificate.edit)
        if found.certificate.edit_hash != edit.content_hash or not _removes_the_same(stored, edit):
            which = stored.edit or f"that was made of the interventions of {stored.name}"
            raise ParentChangedError(
                f"the export {found.name} is not one of the edit {which}; export that one",
                export_edit=found.certificate.edit_hash,
                removal_edit=edit.content_hash,
            )
        return found.folder

    def _publish(
        self, identifier: str, made: ClassifierExport, staging: Path, operation_id: str
    ) -> ClassifierExport:
        """Enter the record and rename, while nothing else is published into the root."""
        with self._exports.publishing:
            self._require_free(identifier)
            stored = StoredClassifier(operation_id=operation_id, classifier=made)
            publish_recorded(self._records, stored, staging, self._root / identifier, field="classifier_id")
            return made

    def _published_by(self, identifier: str, operation_id: str) -> ClassifierExport | None:
        stored = self._records.read(identifier)
        if stored is None or stored.operation_id != operation_id or not (self._root / identifier).is_dir():
            return None
        return stored.classifier

    def _require_free(self, identifier: str) -> None:
        if os.path.lexists(self._root / identifier):
            raise name_taken(identifier, field="classifier_id")


def _removes_the_same(stored: StoredRemoval, edit: Edit) -> bool:
    """True of the report's own edit; where that could not be made, of any that does the same."""
    if stored.edit:
        return True
    found = stored.found
    removed, made = ({replace(one, label="") for one in of.interventions} for of in (found, edit))
    # Of another set under that name the same addresses are other features.
    same_set = not found.set_hash or {one.content_hash for one in edit.sets} == {found.set_hash}
    return removed == made and same_set and edit.weight_hash == found.weight_hash


def _no_edit(stored: StoredRemoval) -> str:
    outcome = stored.found.outcome
    return (
        f"{stored.name} made no edit that could be exported (its outcome is {outcome.verdict.value}: "
        f"{outcome.why}); remove again with the name of an edit, and with `unproven` if it is to be made all "
        "the same"
    )
