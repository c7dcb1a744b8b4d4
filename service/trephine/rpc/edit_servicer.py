"""EditService."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.longrunning.operations_pb2 import Operation
from google.protobuf.empty_pb2 import Empty

from trephine.app.jobs.requests import ExportRequest, ProposeRequest
from trephine.app.service import Service
from trephine.domain.ablation import LogitTarget
from trephine.domain.circuits import Circuit
from trephine.domain.errors import InvalidRequestError, UnsupportedOptionError
from trephine.rpc.calls import Context
from trephine.rpc.edit_composition_servicer import EditCompositionCalls
from trephine.rpc.edit_evaluation_servicer import EditEvaluationCalls
from trephine.rpc.edit_history_servicer import EditHistoryCalls
from trephine.rpc.edit_writer import EditWriter
from trephine.rpc.paging import page
from trephine.rpc.results import OperationWriter, validated
from trephine.rpc.spurious_removal_servicer import SpuriousRemovalCalls
from trephine.rpc.wire.common import logit_target_from_wire
from trephine.rpc.wire.edit_evidence import evidence_from_wire
from trephine.rpc.wire.edits import (
    edit_id,
    edit_reference,
    edit_to_wire,
    export_id,
    propose_from_wire,
)
from trephine.rpc.wire.export_signing import identity_token, wanted_signer
from trephine.rpc.wire.exports import (
    export_options_from_wire,
    export_to_wire,
    plan_to_wire,
    verified_to_wire,
)
from trephine.rpc.wire.fields import at_least, prompt, request_id, required, resource_id, within
from trephine.rpc.wire.interventions import interventions_from_wire
from trephine.v1 import edit_service_pb2 as pb
from trephine.v1.edit_service_pb2_grpc import EditServiceServicer


class EditServicer(
    EditCompositionCalls, EditEvaluationCalls, EditHistoryCalls, SpuriousRemovalCalls, EditServiceServicer
):
    """Edits: from a proposal to a published checkpoint."""

    def __init__(self, service: Service, operations: OperationWriter) -> None:
        self._written = EditWriter(service.edit_evidence)
        EditCompositionCalls.__init__(self, service)
        EditEvaluationCalls.__init__(self, service, operations)
        EditHistoryCalls.__init__(self, service)
        SpuriousRemovalCalls.__init__(self, service, operations)
        self._circuits = service.circuits
        self._removal = service.edit_removal
        self._exports = service.exports
        self._operations = operations

    async def ProposeEdit(self, request: pb.ProposeEditRequest, context: Context) -> Operation:
        """Find the smallest all-positions ablation that could ship."""
        model, text, target = await self._asked_of(request)
        command = propose_from_wire(request, text, target)
        proposed = ProposeRequest(model=model, command=command)
        return await self._operations.start("ProposeEdit", proposed, request.request_id)

    async def CreateEdit(self, request: pb.CreateEditRequest, context: Context) -> pb.Edit:
        """Store an edit."""
        interventions = interventions_from_wire(request.interventions)
        if not interventions:
            raise InvalidRequestError("at least one intervention is needed", field="interventions")
        edit = await self._edits.create(
            edit_id(request.edit_id),
            resource_id(request.model, "models", "model"),
            interventions,
            required(request.reason, "reason"),
            request.author,
            await self._written.evidence.checked(evidence_from_wire(request.evidence)),
            request_id(request.request_id),
        )
        return await self._written.write(edit)

    async def GetEdit(self, request: pb.GetEditRequest, context: Context) -> pb.Edit:
        """Describe one edit."""
        return await self._written.write(await self._edits.get(edit_reference(request.name)))

    async def ListEdits(self, request: pb.ListEditsRequest, context: Context) -> pb.ListEditsResponse:
        """List stored edits, newest first."""
        found = page(
            await self._edits.list(),
            size=request.page_size,
            token=request.page_token,
            question=("ListEdits",),
            key=lambda edit: edit.name,
        )
        edits = [edit_to_wire(edit) for edit in found.items]
        return pb.ListEditsResponse(edits=edits, next_page_token=found.next_token)

    async def DeleteEdit(self, request: pb.DeleteEditRequest, context: Context) -> Empty:
        """Forget an edit; refused while something rests on it, unless forced."""
        await self._removal.delete(edit_reference(request.name), force=request.force, etag=request.etag)
        return Empty()

    async def PlanExport(self, request: pb.PlanExportRequest, context: Context) -> pb.ExportPlan:
        """Say what an export would write and must measure."""
        edit = edit_reference(request.edit, "edit")
        return plan_to_wire(
            await self._exports.plan(edit, _model(request), export_options_from_wire(request))
        )

    async def ExportCheckpoint(self, request: pb.ExportCheckpointRequest, context: Context) -> Operation:
        """Compile, certify in a clean process, sign, publish; or only plan."""
        edit, token = edit_reference(request.edit, "edit"), identity_token(request)
        wanted = ExportRequest(
            edit=edit,
            export_id=export_id(request.export_id),
            model=_model(request),
            keep_rejected=request.keep_rejected,
            options=export_options_from_wire(request),
            sigstore=request.HasField("sigstore"),
            token_given=token is not None,
            identity_token=token,
        )
        if request.validate_only:
            plan = await self._exports.plan(edit, wanted.model, wanted.options)
            return validated("ExportCheckpoint", plan_to_wire(plan))
        return await self._operations.start("ExportCheckpoint", wanted, request.request_id)

    async def GetExport(self, request: pb.GetExportRequest, context: Context) -> pb.Export:
        """Describe a published export."""
        return export_to_wire(await self._exports.get(resource_id(request.name, "exports")))

    async def ListExports(self, request: pb.ListExportsRequest, context: Context) -> pb.ListExportsResponse:
        """List published exports, newest first."""
        edit = edit_reference(request.edit, "edit") if request.edit else None
        found = page(
            await self._exports.list(edit),
            size=request.page_size,
            token=request.page_token,
            question=("ListExports", edit),
            key=lambda export: export.name,
        )
        exports = [export_to_wire(export, whole=False) for export in found.items]
        return pb.ListExportsResponse(exports=exports, next_page_token=found.next_token)

    async def VerifyExport(
        self, request: pb.VerifyExportRequest, context: Context
    ) -> pb.VerifyExportResponse:
        """Check a published folder."""
        name, signer = resource_id(request.name, "exports"), wanted_signer(request)
        return verified_to_wire(await self._exports.verify(name, signer))

    async def ReadExportFile(
        self, request: pb.ReadExportFileRequest, context: Context
    ) -> AsyncIterator[pb.ReadExportFileResponse]:
        """Read a file of a published export, from an offset."""
        name, path = resource_id(request.name, "exports"), required(request.path, "path")
        offset = at_least(request.offset, 0, "offset")
        async for place, data in self._exports.file_chunks(name, path, offset):
            yield pb.ReadExportFileResponse(offset=place, data=data)

    async def _asked_of(self, request: pb.ProposeEditRequest) -> tuple[str, str, LogitTarget]:
        """Model, prompt and target: the circuit's where one is given, else the request's own."""
        if request.HasField("circuit"):
            stored = await self._circuits.get(resource_id(request.circuit, "circuits", "circuit"))
            stored.circuit.require_prompt("an edit proposed from it")
            if stored.provenance.is_foreign:
                raise UnsupportedOptionError(
                    "the circuit was imported from a file and nothing of it was verified: no "
                    "edit can rest on it; discover it here",
                    field="circuit",
                )
            return stored.circuit.model, stored.circuit.prompt, _target_of(stored.circuit)
        with within("target"):
            target = logit_target_from_wire(request.target)
        return resource_id(request.model, "models", "model"), prompt(request.prompt), target


def _target_of(circuit: Circuit) -> LogitTarget:
    token, against = circuit.choice()
    return LogitTarget(token=f"#{token.id}", against=None if against is None else f"#{against.id}")


def _model(request: pb.PlanExportRequest | pb.ExportCheckpointRequest) -> str | None:
    return resource_id(request.model, "models", "model") if request.HasField("model") else None
