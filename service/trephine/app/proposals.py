"""Proposals."""

from __future__ import annotations

from trephine.domain.edits import EditProposal
from trephine.domain.errors import InternalError


class Proposals:
    """Stored proposals. Names may be `proposals/ID` or `ID`."""

    async def save(self, proposal: EditProposal, *, proposal_id: str | None = None) -> str:
        """Store; return the resource name."""
        raise InternalError("not available yet")

    async def get(self, name: str) -> EditProposal:
        """One proposal."""
        raise InternalError("not available yet")
