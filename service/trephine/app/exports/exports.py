"""Publishing edits as checkpoints: planned, compiled by the engine, certified, renamed once."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable, Container
from dataclasses import dataclass, replace
from pathlib import Path

from trephine.app.edits.edits import Edits
from trephine.app.exports.identity_signing import IdentitySigning
from trephine.app.exports.published_files import (
    altered_files,
    file_chunks,
    name_taken,
    publish_recorded,
    rename_free,
)
from trephine.app.exports.signing_key import public_half_of
from trephine.app.exports.verification import verify_folder
from trephine.app.jobs.events import forwarded
from trephine.app.jobs.requests import ExportRequest
from trephine.app.models.models import Models
from trephine.app.storage.clock import Clock, SystemClock, timestamp
from trephine.app.storage.files import TEMPORARY, carried_through, full_disk_is_typed, sync_folder
from trephine.app.storage.names import id_in, require_new_id, resource
from trephine.app.storage.records import RecordFolder
from trephine.app.storage.results import newest_first
from trephine.domain.commands import Progress
from trephine.domain.edit_weights import require_weights
from trephine.domain.edits import Edit
from trephine.domain.errors import (
    EngineLostError,
    GateMissedError,
    PathDeniedError,
    ResourceNotFoundError,
)
from trephine.domain.exports import (
    CompileExport,
    Export,
    ExportOptions,
    ExportPlan,
    PlanExport,
    VerifiedExport,
)
from trephine.domain.signing import PUBLIC_KEY_NAME, SIGNATURE_NAME, IdentitySigner, SignedBy


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredExport:
    """An export with the operation that published it."""

    export: Export
    operation_id: str


class Exports:
    """Published checkpoints. Names may be `exports/ID` or `ID`.

    An operation has the engine build inside a folder of its own in the export root, then enters the
    record, then renames the result to its name: the last act. A record whose folder is not there is none.
    """

    def __init__(
        self,
        folder: Path,
        *,
        export_root: Path,
        models: Models,
        edits: Edits,
        signing_key: Path | None,
        identity_signer: IdentitySigner | None = None,
        sigstore_trust_config: Path | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._records = RecordFolder(folder, StoredExport)
        self._root = export_root.expanduser().resolve()
        self._models = models
        self._edits = edits
        self._signing_key = signing_key
        self._identity = IdentitySigning(identity_signer)
        self._trust_config = sigstore_trust_config
        self._clock = clock or SystemClock()
        self.publishing = threading.Lock()
        """Held from looking whether a name of the export root is free until something has it; classifiers,
        which are published beside exports, hold it as well."""
        self._root.mkdir(parents=True, exist_ok=True)

    def sweep(self, operations: Container[str]) -> None:
        """Remove what interrupted operations of this server left in the export root; at start only."""
        for leftover in self._root.glob(f"{TEMPORARY}*"):
            if leftover.name.removeprefix(TEMPORARY) in operations:
                shutil.rmtree(leftover, ignore_errors=True)

    async def plan(
        self, edit: str, model: str | None = None, options: ExportOptions | None = None
    ) -> ExportPlan:
        """Say what an export would write and must measure; nothing is written.

        Raises:
            ParentChangedError: If the model's weights are not those of the edit.
            EditNotExpressibleError: If weights cannot express it; the context names the field.
        """
        stored = await self._edits.get(edit)
        return await self._plan(stored, model or stored.model, options or ExportOptions())

    async def check(self, request: ExportRequest, *, operation_id: str) -> None:
        """Refuse at once an export whose target exists, or whose edit or model does not.

        Raises:
            ExportTargetExistsError: If the name is taken.
            PathDeniedError: If the export root may not be written to.
            SigningIdentityError: If it is to be signed as an identity, and there is none.
            SigstoreUnreachableError: If that could not be done now.
            TrephineError: As `plan` does.
        """
        require_new_id(request.export_id, field="export_id")
        if not self._published_by(request.export_id, operation_id):
            self._require_free(request)
            self._require_writable()
            await self._identity.require(request, operation_id)
            await self.plan(request.edit, request.model, request.options)
            self._identity.keep(request, operation_id)

    async def run(
        self, request: ExportRequest, on_progress: Callable[[Progress], None], *, operation_id: str
    ) -> Export:
        """Compile, certify and publish; an operation that has published already returns what it did.

        Raises:
            ExportTargetExistsError: If the name is taken by another export or folder.
            GateMissedError: If a measurement exceeds its bound; nothing is published.
            DiskFullError: If there is no room; nothing is left.
            TrephineError: As `check` does.
        """
        try:
            export = await self._run(request, on_progress, operation_id)
        except EngineLostError:
            raise  # the same operation is tried again, and needs its token then
        except BaseException:
            self._identity.forget(operation_id)
            raise
        self._identity.forget(operation_id)
        return export

    async def _run(
        self, request: ExportRequest, on_progress: Callable[[Progress], None], operation_id: str
    ) -> Export:
        done = self._published_by(request.export_id, operation_id)
        if done is not None:
            return done
        self._require_free(request)
        await self._identity.require(request, operation_id)
        staging = self._root / f"{TEMPORARY}{operation_id}"
        try:
            await asyncio.to_thread(_empty, staging)
            export = await self._compile(request, staging, on_progress)
            built = staging / request.export_id
            export = await self._identity.sign(request, export, built, operation_id)
            return await carried_through(self._publish, request, export, staging, operation_id)
        except GateMissedError:
            self._keep_rejected(request, staging)
            raise
        finally:
            await asyncio.to_thread(shutil.rmtree, staging, ignore_errors=True)

    async def get(self, name: str) -> Export:
        """Return a published export.

        Raises:
            ResourceNotFoundError: If there is none of that name.
        """
        export_id = id_in("exports", name)
        stored = await asyncio.to_thread(self._records.read, export_id)
        if stored is None or not self._target(export_id).is_dir():
            raise await asyncio.to_thread(self._unknown, export_id)
        return stored.export

    def _unknown(self, export_id: str) -> ResourceNotFoundError:
        """Name the exports of an edit to whoever asks for them by the edit, or by a folder called like it."""
        alike = [
            name
            for name in self._records.all()
            if name.startswith(f"{export_id}-") and self._target(name).is_dir()
        ]
        there = f"; there is {', '.join(sorted(alike))}" if alike else ""
        return ResourceNotFoundError(f"there is no export {export_id}{there}", name=f"exports/{export_id}")

    async def list(self, edit: str | None = None) -> tuple[Export, ...]:
        """Return published exports, newest first.

        Args:
            edit: Only those of this edit: `ID` for all its versions, `ID@VERSION` for what does as that does.

        Raises:
            ResourceNotFoundError: If a version is named that does not exist.
        """
        stored = await asyncio.to_thread(self._records.all)
        found = [each.export for name, each in stored.items() if self._target(name).is_dir()]
        if edit is not None:
            name, _, version = edit.partition("@")
            content = (await self._edits.get(edit)).content_hash if version else None
            found = [one for one in found if _is_of(one, name, content)]
        return newest_first(found)

    async def verify(self, name: str, signer: SignedBy | None = None) -> VerifiedExport:
        """Check a published folder with the offline verifier, and hold it against the server's own record.

        A whole folder of somebody else's verifies by itself: it must be the one that was published here, file
        by file, and signed with the key that it was published with.

        Args:
            name: Of the export.
            signer: Identity that must have signed it with Sigstore.

        Raises:
            ResourceNotFoundError: If there is none of that name.
            SignatureKindError: If it is signed with a key, and an identity is asked for.
        """
        export = await self.get(name)
        folder = Path(export.folder)
        altered = await asyncio.to_thread(altered_files, folder, export.files)
        key = None
        if signer is None and _has_key_of_record(export, altered):
            key = folder / PUBLIC_KEY_NAME
        outcome = await verify_folder(folder, signer=signer, trust_config=self._trust_config, public_key=key)
        notes = outcome.notes
        if key is not None and not await asyncio.to_thread(self._is_own_key, key):
            notes = (*notes, "the key is the one that it was published with, and not this server's of today")
        problems = tuple(f"{path}: is not the file that this server published" for path in altered)
        passed = outcome.passed and not problems
        return replace(outcome, passed=passed, problems=(*problems, *outcome.problems), notes=notes)

    async def file_chunks(self, name: str, path: str, offset: int = 0) -> AsyncIterator[tuple[int, bytes]]:
        """Read a listed file in pieces of at most 512 KiB, each with where it begins.

        Raises:
            ResourceNotFoundError: If the export does not list the file.
            InvalidRequestError: If the offset lies outside it.
            CheckpointUnverifiedError: If the file is not the one that was published any more.
        """
        export = await self.get(name)
        full = resource("exports", export.name)
        async for piece in file_chunks(Path(export.folder), export.files, path, offset, name=full):
            yield piece

    async def _plan(self, edit: Edit, model: str, options: ExportOptions) -> ExportPlan:
        info = await self._models.info(model)
        require_weights(edit, info.name, info.weight_hash)
        return await self._models.engine(model).run(PlanExport(edit=edit, options=options))

    async def _compile(
        self, request: ExportRequest, staging: Path, on_progress: Callable[[Progress], None]
    ) -> Export:
        edit = await self._edits.get(request.edit)
        model = request.model or edit.model
        key = None if request.sigstore else self._signing_key
        command = CompileExport(
            edit=edit,
            plan=await self._plan(edit, model, request.options),
            name=request.export_id,
            folder=str(staging / request.export_id),
            signing_key=None if key is None else str(key),
            keep_rejected=request.keep_rejected,
            options=request.options,
        )
        return await self._models.engine(model).run(command, on_event=forwarded(on_progress))

    def _publish(self, request: ExportRequest, export: Export, staging: Path, operation_id: str) -> Export:
        """Enter the record and rename; two that end together are one after the other, and one is refused."""
        with self.publishing:
            self._require_free(request)
            final = self._target(request.export_id)
            now = timestamp(self._clock.now())
            export = replace(export, name=request.export_id, folder=str(final), create_time=now)
            stored = StoredExport(export=export, operation_id=operation_id)
            publish_recorded(self._records, stored, staging / request.export_id, final, field="export_id")
            return export

    def _is_own_key(self, public: Path) -> bool:
        return self._signing_key is not None and public.read_bytes() == public_half_of(self._signing_key)

    def _published_by(self, export_id: str, operation_id: str) -> Export | None:
        stored = self._records.read(export_id)
        if stored is None or stored.operation_id != operation_id or not self._target(export_id).is_dir():
            return None
        return stored.export

    def _require_free(self, request: ExportRequest) -> None:
        names = {request.export_id: "choose another name"}
        if request.keep_rejected:
            rejected = "choose another name, or export without keeping what is rejected"
            names[f"{request.export_id}.rejected"] = rejected
        for name, advice in names.items():
            if os.path.lexists(self._target(name)):
                raise name_taken(name, field="export_id", advice=advice)

    def _require_writable(self) -> None:
        if not os.access(self._root, os.W_OK | os.X_OK):
            raise PathDeniedError(
                "the server may not write into its export root: make it writable, or start the server with "
                "another --export-root"
            )

    def _keep_rejected(self, request: ExportRequest, staging: Path) -> None:
        name = f"{request.export_id}.rejected"
        if request.keep_rejected and (staging / name).is_dir():
            rename_free(staging / name, self._target(name), field="export_id")
            sync_folder(self._root)

    def _target(self, export_id: str) -> Path:
        return self._root / export_id


def _has_key_of_record(export: Export, altered: Container[str]) -> bool:
    """True if the folder's key and signature are those of the record, which says that a key signed."""
    listed = {file.path for file in export.files} >= {SIGNATURE_NAME, PUBLIC_KEY_NAME}
    by_key = export.signed and (export.signed_by is None or export.signed_by.kind == "key")
    return listed and by_key and SIGNATURE_NAME not in altered and PUBLIC_KEY_NAME not in altered


def _is_of(export: Export, edit: str, content_hash: str | None) -> bool:
    certificate = export.certificate
    if certificate.edit.removeprefix("edits/") != edit:
        return False
    return content_hash is None or certificate.edit_hash == content_hash


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with full_disk_is_typed("an export"):
        folder.mkdir(mode=0o755)
