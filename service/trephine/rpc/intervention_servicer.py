"""InterventionService."""

from __future__ import annotations

from trephine.app.service import Service
from trephine.domain.errors import InvalidRequestError
from trephine.domain.interventions import Intervention
from trephine.rpc.calls import Context
from trephine.rpc.streaming import remaining
from trephine.rpc.wire.ablation import ablation_from_wire, report_to_wire
from trephine.rpc.wire.edits import edit_reference
from trephine.rpc.wire.fields import resource_id
from trephine.rpc.wire.interventions import interventions_from_wire
from trephine.v1 import intervention_service_pb2 as pb
from trephine.v1.intervention_service_pb2_grpc import InterventionServiceServicer


class InterventionServicer(InterventionServiceServicer):
    """Measured effects of interventions."""

    def __init__(self, service: Service) -> None:
        self._models = service.models
        self._edits = service.edits

    async def Ablate(self, request: pb.AblateRequest, context: Context) -> pb.AblateResponse:
        """Apply interventions to a prompt, measure a target, compare with matched controls."""
        model = resource_id(request.model, "models", "model")
        command = ablation_from_wire(request, await self._interventions(request))
        report = await self._models.engine(model).run(command, deadline_seconds=remaining(context))
        return report_to_wire(report)

    async def _interventions(self, request: pb.AblateRequest) -> tuple[Intervention, ...]:
        if not request.HasField("edit"):
            return interventions_from_wire(request.interventions)
        if request.interventions:
            raise InvalidRequestError("give interventions or an edit, not both", field="edit")
        edit = await self._edits.get(edit_reference(request.edit, "edit"))
        return edit.interventions
