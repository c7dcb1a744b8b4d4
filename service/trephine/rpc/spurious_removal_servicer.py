"""The part of EditService that removes spurious features from decisions."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.longrunning.operations_pb2 import Operation

from trephine.app.exports.classifiers import COLLECTION as CLASSIFIERS
from trephine.app.service import Service
from trephine.app.spurious.spurious_removals import COLLECTION
from trephine.app.storage.names import resource
from trephine.rpc.calls import Context
from trephine.rpc.paging import Paging, page
from trephine.rpc.results import OperationWriter, validated
from trephine.rpc.wire.fields import at_least, required, resource_id
from trephine.rpc.wire.spurious_removals import (
    classifier_from_wire,
    predicted_to_wire,
    removal_to_wire,
    remove_from_wire,
)
from trephine.v1 import spurious_removal_pb2 as pb

_LISTED = Paging(default=20, largest=50)


class SpuriousRemovalCalls:
    """Methods of `EditServicer` on spurious features."""

    def __init__(self, service: Service, operations: OperationWriter) -> None:
        self._removals = service.spurious_removals
        self._classifiers = service.classifiers
        self._removing = operations

    async def RemoveSpuriousFeatures(
        self, request: pb.RemoveSpuriousFeaturesRequest, context: Context
    ) -> Operation:
        """Judge, remove and measure, or only check and predict."""
        wanted = remove_from_wire(request)
        if request.validate_only:
            command, info, cost = await self._removals.predict(wanted)
            return validated("RemoveSpuriousFeatures", predicted_to_wire(command, info, cost))
        return await self._removing.start("RemoveSpuriousFeatures", wanted, request.request_id)

    async def GetSpuriousRemoval(
        self, request: pb.GetSpuriousRemovalRequest, context: Context
    ) -> pb.SpuriousRemoval:
        """Read a report, whole."""
        return removal_to_wire(await self._removals.get(resource_id(request.name, COLLECTION)))

    async def ListSpuriousRemovals(
        self, request: pb.ListSpuriousRemovalsRequest, context: Context
    ) -> pb.ListSpuriousRemovalsResponse:
        """List reports, newest first, without features."""
        found = page(
            await self._removals.list(),
            size=request.page_size,
            token=request.page_token,
            question=("ListSpuriousRemovals",),
            rule=_LISTED,
            key=lambda stored: stored.name,
        )
        return pb.ListSpuriousRemovalsResponse(
            spurious_removals=[removal_to_wire(one, whole=False) for one in found.items],
            next_page_token=found.next_token,
        )

    async def RenderSpuriousRemoval(
        self, request: pb.RenderSpuriousRemovalRequest, context: Context
    ) -> pb.RenderSpuriousRemovalResponse:
        """Store a report's decision list as an artifact."""
        made = await self._removals.render(resource_id(request.name, COLLECTION))
        return pb.RenderSpuriousRemovalResponse(artifact=resource("artifacts", made.sha256))

    async def ExportClassifier(self, request: pb.ExportClassifierRequest, context: Context) -> Operation:
        """Publish a report's head on an export of its edit."""
        return await self._removing.start(
            "ExportClassifier", classifier_from_wire(request), request.request_id
        )

    async def ReadClassifierFile(
        self, request: pb.ReadClassifierFileRequest, context: Context
    ) -> AsyncIterator[pb.ReadClassifierFileResponse]:
        """Read a file of a published classifier, from an offset."""
        name, path = resource_id(request.name, CLASSIFIERS), required(request.path, "path")
        offset = at_least(request.offset, 0, "offset")
        async for place, data in self._classifiers.file_chunks(name, path, offset):
            yield pb.ReadClassifierFileResponse(offset=place, data=data)
