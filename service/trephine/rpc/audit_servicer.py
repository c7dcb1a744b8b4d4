"""AuditService."""

from __future__ import annotations

from google.longrunning.operations_pb2 import Operation

from trephine.app.jobs.requests import AuditRequest
from trephine.app.service import Service
from trephine.rpc.calls import Context
from trephine.rpc.paging import page
from trephine.rpc.results import OperationWriter
from trephine.rpc.wire.audits import audit_to_wire, auditor_to_wire, format_from_wire, spec_from_wire
from trephine.rpc.wire.fields import resource_id
from trephine.v1 import audit_service_pb2 as pb
from trephine.v1.audit_service_pb2_grpc import AuditServiceServicer


class AuditServicer(AuditServiceServicer):
    """Audits: plugins that ask a question of a model and back the answer with causal tests."""

    def __init__(self, service: Service, operations: OperationWriter) -> None:
        self._audits = service.audits
        self._operations = operations

    async def ListAuditors(
        self, request: pb.ListAuditorsRequest, context: Context
    ) -> pb.ListAuditorsResponse:
        """List installed auditors."""
        found = page(
            await self._audits.list_auditors(),
            size=request.page_size,
            token=request.page_token,
            question=("ListAuditors",),
            key=lambda info: info.name,
        )
        auditors = [auditor_to_wire(info) for info in found.items]
        return pb.ListAuditorsResponse(auditors=auditors, next_page_token=found.next_token)

    async def RunAudit(self, request: pb.RunAuditRequest, context: Context) -> Operation:
        """Run one auditor on a loaded model."""
        model = resource_id(request.model, "models", "model")
        spec = spec_from_wire(request)
        wanted = AuditRequest(model=model, spec=spec)
        return await self._operations.start("RunAudit", wanted, request.request_id)

    async def GetAuditReport(self, request: pb.GetAuditReportRequest, context: Context) -> pb.AuditReport:
        """Read a finished audit."""
        return audit_to_wire(await self._audits.get(resource_id(request.name, "audits")))

    async def RenderAuditReport(
        self, request: pb.RenderAuditReportRequest, context: Context
    ) -> pb.RenderAuditReportResponse:
        """Render a finished audit as a file."""
        name, format = resource_id(request.name, "audits"), format_from_wire(request.format)
        info = await self._audits.render(name, format)
        return pb.RenderAuditReportResponse(artifact=f"artifacts/{info.sha256}")
