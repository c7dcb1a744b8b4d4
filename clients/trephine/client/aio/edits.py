"""Stored edits, their plans, and the folders exported from them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

from trephine.client import requests
from trephine.client.aio.edit_composition import AsyncEditComposition
from trephine.client.aio.edit_evaluation import AsyncEditEvaluations
from trephine.client.aio.edit_history import AsyncEditHistory
from trephine.client.aio.folder_downloads import download_folder
from trephine.client.aio.operations import AsyncOperation
from trephine.client.aio.wire import AsyncWire
from trephine.client.authors import current_user
from trephine.client.decoding import decode
from trephine.client.downloads import OnBytes
from trephine.client.edit_requests import NO_REASON
from trephine.client.errors import InvalidRequestError, ResourceNotFoundError
from trephine.client.evidence import told
from trephine.client.export_notices import require_certified
from trephine.client.selection import EditDraft
from trephine.client.types import Edit, Export, ExportPlan, Intervention, VerifiedExport
from trephine.v1 import edit_service_pb2


class AsyncEdits(AsyncEditHistory, AsyncEditComposition, AsyncEditEvaluations):
    """Named, versioned, revertible interventions."""

    def __init__(self, wire: AsyncWire) -> None:
        self._wire = wire

    async def create(
        self,
        name: str,
        interventions: EditDraft | Sequence[Intervention],
        *,
        model: str | None = None,
        reason: str | None = None,
        author: str | None = None,
        evidence: Sequence[str] | None = None,
        request_id: str | None = None,
    ) -> Edit:
        """Store an edit.

        Args:
            name: Lower case letters, digits and dashes.
            interventions: At least one; a draft also brings model, reason and evidence.
            model: The model that it is for; needed unless a draft brings it.
            reason: Why it exists; unset: the draft's, or "none given".
            author: Who made it; unset: the name of the user who runs this.
            evidence: Names of circuits, audits or findings (`audits/ID#FINGERPRINT`); data as
                `NAME@sha256:HEX`.
            request_id: The same id again returns the same edit.
        """
        draft = interventions if isinstance(interventions, EditDraft) else None
        chosen = model or (draft.model if draft else "")
        if not chosen:
            raise InvalidRequestError("say which model the edit is for: model='smollm2'", field="model")
        request = requests.create_edit(
            name,
            chosen,
            interventions,
            request_id,
            reason=reason if reason is not None else (draft.reason if draft else NO_REASON),
            author=author if author is not None else current_user(),
            evidence=evidence if evidence is not None else (draft.evidence if draft else ()),
        )
        return told(decode(Edit, await self._wire.call(self._wire.edits.CreateEdit, request)))

    async def get(self, name: str) -> Edit:
        """One edit by name: its latest version, or the one of `NAME@VERSION`."""
        request = edit_service_pb2.GetEditRequest(name=requests.resource("edits", name))
        return decode(Edit, await self._wire.call(self._wire.edits.GetEdit, request))

    async def list(self) -> tuple[Edit, ...]:
        """All edits, newest first."""
        request = edit_service_pb2.ListEditsRequest(page_size=500)
        found = self._wire.pages(self._wire.edits.ListEdits, request)
        return tuple([decode(Edit, edit) async for page in found for edit in page.edits])

    async def plan(
        self,
        edit: Edit | str,
        *,
        model: str | None = None,
        text: str | None = None,
        min_recovery: float | None = None,
        keep_shapes: bool = False,
        gguf: Sequence[str] = (),
    ) -> ExportPlan:
        """What an export would write and must measure, before anything is written.

        Args:
            edit: The edit or its name.
            model: Compile from this model; unset: the edit's own.
            text: Calibrates grafts and fits, and is measured on; unset: the built-in text.
            min_recovery: Of fitted parts, the share of the edit that must be carried; unset: 0.9.
            keep_shapes: Fit features into the matrices that are there instead of adding neurons.
            gguf: GGUF files that are to be written as well: `q8_0`, `q4_0`. Grafts then use no biases.
        """
        request = requests.plan(edit, model, text, min_recovery, keep_shapes, gguf)
        return decode(ExportPlan, await self._wire.call(self._wire.edits.PlanExport, request))


class AsyncExports:
    """Published folders on the server, and the way home."""

    def __init__(self, wire: AsyncWire) -> None:
        self._wire = wire

    async def get(self, name: str) -> Export:
        """One export by name."""
        request = edit_service_pb2.GetExportRequest(name=requests.resource("exports", name))
        return decode(Export, await self._wire.call(self._wire.edits.GetExport, request))

    async def published(self, export_id: str, edit: Edit) -> Export | None:
        """The export of that name if it exists and was made from this edit: of its name, as it does."""
        try:
            export = await self.get(export_id)
        except ResourceNotFoundError:
            return None
        certificate = export.certificate
        same = (certificate.edit, certificate.edit_hash) == (edit.name, edit.content_hash)
        return export if same else None

    async def list(self, *, edit: Edit | str | None = None) -> tuple[Export, ...]:
        """Published exports, newest first, without files, measurements and tensors: `get` has all of one.

        Args:
            edit: Only of this edit: by name of all its versions, as a value of what does as that one does.
        """
        found = self._wire.pages(self._wire.edits.ListExports, requests.exports(edit))
        return tuple([decode(Export, export) async for page in found for export in page.exports])

    async def verify(
        self, name: str, *, identity: str | None = None, identity_provider: str | None = None
    ) -> VerifiedExport:
        """Check the folder where it was published.

        Args:
            name: Of the export.
            identity: Who must have signed it with Sigstore; unset: whatever signature it has must hold.
            identity_provider: URL of who must have vouched for the identity; needed with it.

        Raises:
            SignatureKindError: If an identity is asked for and the folder is signed with a key.
        """
        request = requests.verify_export(name, identity, identity_provider)
        return decode(VerifiedExport, await self._wire.call(self._wire.edits.VerifyExport, request))

    async def start(
        self,
        edit: Edit | str,
        export_id: str,
        *,
        model: str | None = None,
        keep_rejected: bool = False,
        text: str | None = None,
        min_recovery: float | None = None,
        keep_shapes: bool = False,
        attack: bool = False,
        attack_steps: int | None = None,
        gguf: Sequence[str] = (),
        sigstore: bool = False,
        identity_token: str | None = None,
        request_id: str | None = None,
    ) -> AsyncOperation[Export]:
        """Start compiling, certifying and publishing on the server; the arguments are those of `export`."""
        request = requests.export(
            *(edit, export_id, model, keep_rejected, text, min_recovery, keep_shapes, attack, attack_steps),
            *(gguf, sigstore, identity_token, request_id),
        )
        message = await self._wire.call(self._wire.edits.ExportCheckpoint, request)
        return AsyncOperation(self._wire, message, lambda result: decode(Export, result))

    async def download(self, export: Export, folder: str | Path, *, on_bytes: OnBytes | None = None) -> Path:
        """Fetch every file into a temporary sibling of `folder`, check it, and rename once.

        Raises:
            CheckpointUnverifiedError: If its certificate does not pass.
            ExportTargetExistsError: If the folder exists.
            HashMismatchError: If the bytes are not the announced ones; nothing is kept.
        """
        require_certified(export)

        def read(path: str, offset: int) -> AsyncGenerator[edit_service_pb2.ReadExportFileResponse, None]:
            request = edit_service_pb2.ReadExportFileRequest(name=export.name, path=path, offset=offset)
            return self._wire.stream(self._wire.edits.ReadExportFile, request)

        return await download_folder(export.files, folder, read, on_bytes=on_bytes)
