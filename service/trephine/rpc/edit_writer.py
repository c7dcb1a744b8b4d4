"""Edits as responses: with what is to be said of their evidence."""

from __future__ import annotations

from trephine.app.edits.edit_evidence import EditEvidence
from trephine.domain.edits import Edit
from trephine.rpc.wire.edits import edit_to_wire
from trephine.rpc.wire.fields import clean
from trephine.v1 import edit_service_pb2 as pb


class EditWriter:
    """Writes single edits; lists leave warnings out, which cost a look-up each."""

    def __init__(self, evidence: EditEvidence) -> None:
        self.evidence = evidence

    async def write(self, edit: Edit) -> pb.Edit:
        """Write an edit with a warning for every reference that is not on this server."""
        message = edit_to_wire(edit)
        message.evidence_warnings.extend(clean(one) for one in await self.evidence.warnings(edit))
        return message
