"""ModelService."""

from __future__ import annotations

from google.longrunning.operations_pb2 import Operation
from google.protobuf.empty_pb2 import Empty

from trephine.app.jobs.requests import LoadRequest
from trephine.app.service import Service
from trephine.domain.errors import InvalidRequestError
from trephine.domain.models import DescribeCapabilities, ModelSource
from trephine.domain.tokens import Tokenize
from trephine.rpc.calls import Context
from trephine.rpc.paging import page
from trephine.rpc.results import OperationWriter, validated
from trephine.rpc.streaming import remaining
from trephine.rpc.wire.fields import is_resource_id, required, resource_id
from trephine.rpc.wire.models import (
    capabilities_to_wire,
    dtype_from_wire,
    model_to_wire,
    render_chat_from_wire,
    tokens_to_wire,
)
from trephine.v1 import model_service_pb2 as pb
from trephine.v1.model_service_pb2_grpc import ModelServiceServicer


class ModelServicer(ModelServiceServicer):
    """What there is, loading, and what can be done with what is loaded."""

    def __init__(self, service: Service, operations: OperationWriter) -> None:
        self._models = service.models
        self._operations = operations

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        """List models in the model roots, loaded or not."""
        found = page(
            self._models.list(),
            size=request.page_size,
            token=request.page_token,
            question=("ListModels",),
            key=lambda entry: entry.name,
        )
        models = [model_to_wire(entry.name, entry.state, entry.info) for entry in found.items]
        return pb.ListModelsResponse(models=models, next_page_token=found.next_token)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.Model:
        """Describe one model."""
        entry = self._models.get(resource_id(request.name, "models"))
        return model_to_wire(entry.name, entry.state, entry.info)

    async def LoadModel(self, request: pb.LoadModelRequest, context: Context) -> Operation:
        """Load a model into an engine of its own, or only predict what that takes."""
        source = self._source(request)
        if request.validate_only:
            return validated("LoadModel", await self._predicted(source))
        return await self._operations.start("LoadModel", LoadRequest(source=source), request.request_id)

    async def UnloadModel(self, request: pb.UnloadModelRequest, context: Context) -> Empty:
        """End a model's engine."""
        await self._models.unload(resource_id(request.name, "models"))
        return Empty()

    async def GetCapabilities(self, request: pb.GetCapabilitiesRequest, context: Context) -> pb.Capabilities:
        """Say what works for a loaded model."""
        engine = self._models.engine(resource_id(request.model, "models", "model"))
        found = await engine.run(DescribeCapabilities(), deadline_seconds=remaining(context))
        return capabilities_to_wire(found)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        """Split a text exactly as prompts are split."""
        engine = self._models.engine(resource_id(request.model, "models", "model"))
        split = await engine.run(Tokenize(text=request.text), deadline_seconds=remaining(context))
        return tokens_to_wire(split.tokens)

    async def ApplyChatTemplate(
        self, request: pb.ApplyChatTemplateRequest, context: Context
    ) -> pb.ApplyChatTemplateResponse:
        """Render a chat."""
        engine = self._models.engine(resource_id(request.model, "models", "model"))
        rendered = await engine.run(render_chat_from_wire(request), deadline_seconds=remaining(context))
        return pb.ApplyChatTemplateResponse(text=rendered.text)

    def _source(self, request: pb.LoadModelRequest) -> ModelSource:
        if request.model_id and not is_resource_id(request.model_id):
            raise InvalidRequestError(
                "model_id may hold letters, digits, dots, dashes and underscores", field="model_id"
            )
        return self._models.resolve(
            required(request.source, "source"),
            request.model_id,
            dtype_from_wire(request.dtype),
            request.device or "cpu",
            request.adapter if request.HasField("adapter") else None,
            request.revision if request.HasField("revision") else None,
        )

    async def _predicted(self, source: ModelSource) -> pb.Model:
        predicted = await self._models.predict(source)
        return pb.Model(
            name=f"models/{source.name}",
            state=pb.MODEL_STATE_AVAILABLE,
            dtype=source.dtype,
            device=source.device,
            n_parameters=predicted.n_parameters,
            memory_bytes=predicted.memory_bytes,
        )
