"""Audits."""

from __future__ import annotations

from collections.abc import Callable

from trephine.app.requests import AuditRequest
from trephine.domain.artifacts import ArtifactInfo
from trephine.domain.commands import Progress
from trephine.domain.errors import InternalError
from trephine.domain.findings import AuditorInfo, AuditReport, ReportFormat


class Audits:
    """Running auditors and keeping their reports. Names may be `audits/ID` or `ID`."""

    async def list_auditors(self) -> tuple[AuditorInfo, ...]:
        """Installed auditors."""
        raise InternalError("not available yet")

    async def run(
        self, request: AuditRequest, on_progress: Callable[[Progress], None], *, audit_id: str
    ) -> AuditReport:
        """Run one and store its report."""
        raise InternalError("not available yet")

    async def get(self, name: str) -> AuditReport:
        """One report."""
        raise InternalError("not available yet")

    async def render(self, name: str, format: ReportFormat) -> ArtifactInfo:
        """A report as a file."""
        raise InternalError("not available yet")
