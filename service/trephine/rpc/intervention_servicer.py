"""InterventionService."""

from __future__ import annotations

from trephine.app.service import Service
from trephine.domain.edit_conflicts import EditInUse
from trephine.domain.errors import InvalidRequestError
from trephine.domain.interventions import Intervention
from trephine.rpc.calls import Context
from trephine.rpc.streaming import remaining
from trephine.rpc.wire.ablation import ablation_from_wire, report_to_wire
from trephine.rpc.wire.edits import edit_reference
from trephine.rpc.wire.fields import resource_id
from trephine.rpc.wire.interventions import interventions_from_wire
from trephine.rpc.wire.live_edits import interventions_of, uses_from_wire
from trephine.v1 import intervention_service_pb2 as pb
from trephine.v1.intervention_service_pb2_grpc import InterventionServiceServicer


class InterventionServicer(InterventionServiceServicer):
    """Measured effects of interventions."""

    def __init__(self, service: Service) -> None:
        self._models = service.models
        self._edits = service.edits
        self._live = service.live_edits

    async def Ablate(self, request: pb.AblateRequest, context: Context) -> pb.AblateResponse:
        """Apply interventions to a prompt, measure a target, compare with matched controls."""
        model = resource_id(request.model, "models", "model")
        stack = await self._stack(request, model)
        interventions = (*interventions_of(stack), *await self._interventions(request))
        command = ablation_from_wire(request, interventions)
        report = await self._models.engine(model).run(command, deadline_seconds=remaining(context))
        return report_to_wire(report, stack)

    async def _stack(self, request: pb.AblateRequest, model: str) -> tuple[EditInUse, ...]:
        """The edits that are measured; what the model serves by default plays no part."""
        if request.edits and request.HasField("edit"):
            raise InvalidRequestError("give edits or an edit, not both", field="edits")
        return await self._live.stack(model, uses_from_wire(request.edits), plain=True)

    async def _interventions(self, request: pb.AblateRequest) -> tuple[Intervention, ...]:
        if not request.HasField("edit"):
            return interventions_from_wire(request.interventions)
        if request.interventions:
            raise InvalidRequestError("give interventions or an edit, not both", field="edit")
        edit = await self._edits.get(edit_reference(request.edit, "edit"))
        return edit.interventions
