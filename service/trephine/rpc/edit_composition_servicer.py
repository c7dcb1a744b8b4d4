"""The part of EditService that puts edits together and serves them."""

from __future__ import annotations

from trephine.app.service import Service
from trephine.rpc.calls import Context
from trephine.rpc.edit_writer import EditWriter
from trephine.rpc.wire.edits import edit_reference
from trephine.rpc.wire.fields import request_id, resource_id
from trephine.rpc.wire.live_edits import (
    composition_from_wire,
    conflict_to_wire,
    diff_to_wire,
    setting_to_wire,
    uses_from_wire,
)
from trephine.v1 import live_edits_pb2 as pb
from trephine.v1.edit_service_pb2 import ComposeEditsResponse


class EditCompositionCalls:
    """Methods of `EditServicer` that are about several edits."""

    def __init__(self, service: Service) -> None:
        self._composition = service.edit_composition
        self._live = service.live_edits
        self._written = EditWriter(service.edit_evidence)

    async def ComposeEdits(self, request: pb.ComposeEditsRequest, context: Context) -> ComposeEditsResponse:
        """Store one edit out of several, or only list what stands in the way."""
        wanted = composition_from_wire(request)
        if request.validate_only:
            found = await self._composition.conflicts(wanted.parts)
            return ComposeEditsResponse(conflicts=[conflict_to_wire(one) for one in found])
        identifier = request_id(request.request_id)
        await self._written.evidence.checked(wanted.evidence)
        edit = await self._composition.compose(wanted, request_id=identifier)
        return ComposeEditsResponse(edit=await self._written.write(edit))

    async def DiffEdits(self, request: pb.DiffEditsRequest, context: Context) -> pb.DiffEditsResponse:
        """Compare two edits or versions."""
        first, second = edit_reference(request.first, "first"), edit_reference(request.second, "second")
        return diff_to_wire(await self._composition.diff(first, second))

    async def SetLiveEdits(self, request: pb.SetLiveEditsRequest, context: Context) -> pb.LiveEdits:
        """Let a model serve edits by default."""
        model = resource_id(request.model, "models", "model")
        return setting_to_wire(await self._live.set(model, uses_from_wire(request.edits)))

    async def GetLiveEdits(self, request: pb.GetLiveEditsRequest, context: Context) -> pb.LiveEdits:
        """Tell what a model serves by default."""
        return setting_to_wire(await self._live.get(resource_id(request.model, "models", "model")))
