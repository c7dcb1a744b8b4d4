"""ReplacementService."""

from __future__ import annotations

from google.longrunning.operations_pb2 import Operation
from google.protobuf.empty_pb2 import Empty

from trephine.app.jobs.requests import LoadSetRequest
from trephine.app.service import Service
from trephine.rpc.calls import Context
from trephine.rpc.paging import page
from trephine.rpc.results import OperationWriter, validated
from trephine.rpc.wire.evaluations import (
    checked_to_wire,
    evaluate_from_wire,
    evaluation_to_wire,
    format_from_wire,
)
from trephine.rpc.wire.fields import required, resource_id
from trephine.rpc.wire.fits import fit_from_wire, fit_to_wire, predicted_fit_to_wire
from trephine.rpc.wire.replacements import format_from_wire as set_format_from_wire
from trephine.rpc.wire.replacements import loaded_set_name, predicted_to_wire, set_name, set_to_wire
from trephine.v1 import replacement_service_pb2 as pb
from trephine.v1.replacement_service_pb2_grpc import ReplacementServiceServicer


class ReplacementServicer(ReplacementServiceServicer):
    """Replacement sets: loaded beside a model, measured, fitted."""

    def __init__(self, service: Service, operations: OperationWriter) -> None:
        self._models = service.models
        self._replacements = service.replacements
        self._evaluations = service.evaluations
        self._fits = service.fits
        self._operations = operations

    async def ListReplacementSets(
        self, request: pb.ListReplacementSetsRequest, context: Context
    ) -> pb.ListReplacementSetsResponse:
        """List what is loaded and what is in the replacement roots."""
        model = resource_id(request.model, "models", "model") if request.model else None
        found = page(
            self._replacements.list(model),
            size=request.page_size,
            token=request.page_token,
            question=("ListReplacementSets", model),
            key=lambda entry: entry.resource,
        )
        sets = [set_to_wire(entry) for entry in found.items]
        return pb.ListReplacementSetsResponse(replacement_sets=sets, next_page_token=found.next_token)

    async def GetReplacementSet(
        self, request: pb.GetReplacementSetRequest, context: Context
    ) -> pb.ReplacementSet:
        """Describe one set, with its present residency."""
        found = set_name(request.name)
        return set_to_wire(await self._replacements.get(found.name, found.model))

    async def LoadReplacementSet(self, request: pb.LoadReplacementSetRequest, context: Context) -> Operation:
        """Load a set beside a model and admit it, or only predict what that takes."""
        model = resource_id(request.model, "models", "model")
        source = self._replacements.resolve(
            required(request.source, "source"),
            request.set_id,
            set_format_from_wire(request.format),
            request.memory_budget_bytes if request.HasField("memory_budget_bytes") else None,
            request.accept_degraded,
            request.allow_unverified,
        )
        if request.validate_only:
            await self._replacements.check(model, source)
            predicted = await self._replacements.predict(source)
            return validated("LoadReplacementSet", predicted_to_wire(source, model, predicted))
        wanted = LoadSetRequest(model=model, source=source)
        return await self._operations.start("LoadReplacementSet", wanted, request.request_id)

    async def UnloadReplacementSet(self, request: pb.UnloadReplacementSetRequest, context: Context) -> Empty:
        """Forget a loaded set."""
        model, name = loaded_set_name(request.name)
        await self._replacements.unload(model, name)
        return Empty()

    async def EvaluateReplacementSet(
        self, request: pb.EvaluateReplacementSetRequest, context: Context
    ) -> Operation:
        """Measure a loaded set with its controls, or only check and predict."""
        wanted = evaluate_from_wire(request)
        if request.validate_only:
            info, cost = await self._evaluations.predict(wanted)
            model = await self._models.info(wanted.model)
            return validated("EvaluateReplacementSet", checked_to_wire(wanted, info, model, cost))
        return await self._operations.start("EvaluateReplacementSet", wanted, request.request_id)

    async def GetEvaluation(
        self, request: pb.GetEvaluationRequest, context: Context
    ) -> pb.ReplacementEvaluation:
        """Read a finished evaluation."""
        return evaluation_to_wire(await self._evaluations.get(resource_id(request.name, "evaluations")))

    async def RenderEvaluation(
        self, request: pb.RenderEvaluationRequest, context: Context
    ) -> pb.RenderEvaluationResponse:
        """Render a finished evaluation as a file."""
        name, format = resource_id(request.name, "evaluations"), format_from_wire(request.format)
        info = await self._evaluations.render(name, format)
        return pb.RenderEvaluationResponse(artifact=f"artifacts/{info.sha256}")

    async def FitReplacementSet(self, request: pb.FitReplacementSetRequest, context: Context) -> Operation:
        """Fit a set and publish it, or only predict what that takes."""
        wanted = fit_from_wire(request)
        if request.validate_only:
            predicted = await self._fits.validate(wanted)
            return validated("FitReplacementSet", predicted_fit_to_wire(wanted, predicted))
        return await self._operations.start("FitReplacementSet", wanted, request.request_id)

    async def GetFitReport(self, request: pb.GetFitReportRequest, context: Context) -> pb.FitReport:
        """Read a finished fit."""
        return fit_to_wire(await self._fits.get(resource_id(request.name, "fits")))
