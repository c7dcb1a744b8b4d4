"""Exports."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from trephine.app.requests import ExportRequest
from trephine.domain.commands import Progress
from trephine.domain.errors import InternalError
from trephine.domain.exports import Export, ExportPlan, VerifiedExport


class Exports:
    """Planning, publishing and reading exports. Names may be `exports/ID` or `ID`."""

    async def plan(self, edit: str, model: str | None = None) -> ExportPlan:
        """What would be written and must be measured."""
        raise InternalError("not available yet")

    async def run(
        self, request: ExportRequest, on_progress: Callable[[Progress], None], *, operation_id: str
    ) -> Export:
        """Compile, certify, publish."""
        raise InternalError("not available yet")

    async def get(self, name: str) -> Export:
        """One export."""
        raise InternalError("not available yet")

    async def verify(self, name: str) -> VerifiedExport:
        """Run the offline verifier on the published folder."""
        raise InternalError("not available yet")

    def file_chunks(self, name: str, path: str, offset: int = 0) -> AsyncIterator[tuple[int, bytes]]:
        """Read a listed file in pieces of at most 512 KiB."""
        raise InternalError("not available yet")
