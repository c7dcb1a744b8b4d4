"""Stored proposals: effect-against-damage curves and what was chosen from them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

from trephine.app.storage.names import resource
from trephine.app.storage.records import RecordFolder
from trephine.app.storage.results import stored_result
from trephine.domain.edits import EditProposal

COLLECTION = "proposals"


class Proposals:
    """Stored proposals. Names may be `proposals/ID` or `ID`."""

    def __init__(self, folder: Path) -> None:
        self._records = RecordFolder(folder, EditProposal)

    async def save(self, proposal: EditProposal, *, proposal_id: str | None = None) -> str:
        """Store a proposal; return its resource name."""
        proposal_id = proposal_id or uuid4().hex
        await asyncio.to_thread(self._records.write, proposal_id, proposal)
        return resource(COLLECTION, proposal_id)

    async def get(self, name: str) -> EditProposal:
        """Return a proposal.

        Raises:
            ResourceNotFoundError: If there is none of that name.
        """
        return await stored_result(self._records, COLLECTION, name, what="proposal")

    def exists(self, proposal_id: str) -> bool:
        """True if a proposal of that id was published."""
        return self._records.exists(proposal_id)
