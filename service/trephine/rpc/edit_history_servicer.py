"""The part of EditService that is about versions."""

from __future__ import annotations

from trephine.app.service import Service
from trephine.rpc.calls import Context
from trephine.rpc.edit_writer import EditWriter
from trephine.rpc.paging import page
from trephine.rpc.wire.edits import edit_reference, edit_to_wire, reversion_from_wire, update_from_wire
from trephine.rpc.wire.fields import request_id
from trephine.v1 import edit_history_pb2 as pb
from trephine.v1.edit_service_pb2 import Edit, ListEditVersionsResponse


class EditHistoryCalls:
    """Methods of `EditServicer` that are about versions: updates, reversions, and what was before."""

    def __init__(self, service: Service) -> None:
        self._edits = service.edits
        self._written = EditWriter(service.edit_evidence)

    async def UpdateEdit(self, request: pb.UpdateEditRequest, context: Context) -> Edit:
        """Store another version."""
        update = update_from_wire(request)
        if update.evidence is not None:
            await self._written.evidence.checked(update.evidence)
        edit = await self._edits.update(update, request_id=request_id(request.request_id))
        return await self._written.write(edit)

    async def RevertEdit(self, request: pb.RevertEditRequest, context: Context) -> Edit:
        """Store another version that does what an earlier one did."""
        reversion = reversion_from_wire(request)
        edit = await self._edits.revert(reversion, request_id=request_id(request.request_id))
        return await self._written.write(edit)

    async def ListEditVersions(
        self, request: pb.ListEditVersionsRequest, context: Context
    ) -> ListEditVersionsResponse:
        """List the versions of an edit, newest first."""
        name = edit_reference(request.name)
        found = page(
            await self._edits.versions(name),
            size=request.page_size,
            token=request.page_token,
            question=("ListEditVersions", name),
            key=lambda edit: edit.reference,
        )
        edits = [edit_to_wire(edit) for edit in found.items]
        return ListEditVersionsResponse(edits=edits, next_page_token=found.next_token)
