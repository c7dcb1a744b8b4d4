"""The part of EditService that measures edits."""

from __future__ import annotations

from google.longrunning.operations_pb2 import Operation

from trephine.app.service import Service
from trephine.rpc.calls import Context
from trephine.rpc.paging import Paging, page
from trephine.rpc.results import OperationWriter, validated
from trephine.rpc.wire.edit_evaluations import evaluate_from_wire, evaluation_to_wire, predicted_to_wire
from trephine.rpc.wire.edits import edit_reference
from trephine.v1 import edit_evaluations_pb2 as pb

_LISTED = Paging(default=20, largest=50)
"""An evaluation holds every control's value; a message holds 8 MiB."""


class EditEvaluationCalls:
    """Methods of `EditServicer` that run an edit beside its controls."""

    def __init__(self, service: Service, operations: OperationWriter) -> None:
        self._evaluations = service.edit_evaluations
        self._evaluating = operations

    async def EvaluateEdit(self, request: pb.EvaluateEditRequest, context: Context) -> Operation:
        """Measure an edit, or only check and predict."""
        wanted = evaluate_from_wire(request)
        if request.validate_only:
            command, info, cost = await self._evaluations.predict(wanted)
            return validated("EvaluateEdit", predicted_to_wire(command, info, cost))
        return await self._evaluating.start("EvaluateEdit", wanted, request.request_id)

    async def GetEditEvaluation(
        self, request: pb.GetEditEvaluationRequest, context: Context
    ) -> pb.EditEvaluation:
        """Read a finished evaluation."""
        return evaluation_to_wire(await self._evaluations.get(request.name))

    async def ListEditEvaluations(
        self, request: pb.ListEditEvaluationsRequest, context: Context
    ) -> pb.ListEditEvaluationsResponse:
        """List an edit's evaluations, newest first."""
        edit = edit_reference(request.edit, "edit")
        found = page(
            await self._evaluations.list(edit),
            size=request.page_size,
            token=request.page_token,
            question=("ListEditEvaluations", edit),
            rule=_LISTED,
            key=lambda stored: stored.name,
        )
        return pb.ListEditEvaluationsResponse(
            evaluations=[evaluation_to_wire(one) for one in found.items], next_page_token=found.next_token
        )
