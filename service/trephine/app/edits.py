"""Edits."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.domain.edits import Edit
from trephine.domain.errors import InternalError
from trephine.domain.interventions import Intervention


class Edits:
    """Stored edits. Names may be `edits/ID` or `ID`."""

    async def create(
        self,
        edit_id: str,
        model: str,
        interventions: Sequence[Intervention],
        reason: str,
        author: str,
        evidence: Sequence[str] = (),
        request_id: str = "",
    ) -> Edit:
        """Store an edit for the loaded model's weights."""
        raise InternalError("not available yet")

    async def get(self, name: str) -> Edit:
        """One edit."""
        raise InternalError("not available yet")

    async def list(self) -> tuple[Edit, ...]:
        """Newest first."""
        raise InternalError("not available yet")

    async def delete(self, name: str) -> None:
        """Forget one."""
        raise InternalError("not available yet")
