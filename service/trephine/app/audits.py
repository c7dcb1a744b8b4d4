"""Running auditors, and keeping their reports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from trephine.app.jobs.requests import AuditRequest
from trephine.app.models.models import Models
from trephine.app.storage.artifacts import ArtifactStore
from trephine.app.storage.clock import Clock, SystemClock, timestamp
from trephine.app.storage.records import RecordFolder
from trephine.app.storage.results import found_once, stored_result
from trephine.domain.artifacts import ArtifactInfo
from trephine.domain.commands import Progress
from trephine.domain.errors import AuditorNotFoundError
from trephine.domain.findings import AuditorInfo, AuditReport, ReportFormat
from trephine.domain.ports import AuditorHost, ReportWriter


class Audits:
    """Audits and their reports. Names may be `audits/ID` or `ID`."""

    def __init__(
        self,
        folder: Path,
        *,
        models: Models,
        host: AuditorHost,
        writer: ReportWriter,
        artifacts: ArtifactStore,
        clock: Clock | None = None,
    ) -> None:
        self._records = RecordFolder(folder, AuditReport)
        self._models = models
        self._host = host
        self._writer = writer
        self._artifacts = artifacts
        self._clock = clock or SystemClock()

    async def list_auditors(self) -> tuple[AuditorInfo, ...]:
        """Return the installed auditors, by name."""
        return tuple(sorted(await self._host.list_auditors(), key=lambda auditor: auditor.name))

    async def run(
        self, request: AuditRequest, on_progress: Callable[[Progress], None], *, audit_id: str
    ) -> AuditReport:
        """Run one auditor and store its report; an audit that has a report is not run again.

        Raises:
            AuditorNotFoundError: If no auditor has that name; the message lists those there are.
            AuditorFailedError: If it raised, hung, died or answered nonsense. Never a pass.
            ModelNotReadyError: If the model is not loaded.
        """

        async def audit() -> AuditReport:
            auditor = await self._auditor(request.spec.auditor)
            info = await self._models.info(request.model)
            started = self._clock.monotonic()
            outcome = await self._host.run_audit(
                request.spec, self._models.engine(request.model), on_progress=on_progress
            )
            return AuditReport(
                id=audit_id,
                spec=request.spec,
                auditor=auditor,
                model=info.name,
                weight_hash=info.weight_hash,
                outcome=outcome,
                seconds=self._clock.monotonic() - started,
                create_time=timestamp(self._clock.now()),
                trephine_version=version("trephine"),
            )

        return await found_once(self._records, audit_id, audit)

    async def get(self, name: str) -> AuditReport:
        """Return a report.

        Raises:
            ResourceNotFoundError: If there is none of that name.
        """
        return await stored_result(self._records, "audits", name, what="audit")

    async def render(self, name: str, format: ReportFormat) -> ArtifactInfo:
        """Store a report as a file in one of its formats.

        Raises:
            ResourceNotFoundError: If there is none of that name.
        """
        report = await self.get(name)
        data, media_type = await asyncio.to_thread(self._writer.write, report, format)
        return await self._artifacts.put(data, media_type=media_type)

    async def _auditor(self, name: str) -> AuditorInfo:
        auditors = await self.list_auditors()
        for auditor in auditors:
            if auditor.name == name:
                return auditor
        known = ", ".join(auditor.name for auditor in auditors) or "none"
        raise AuditorNotFoundError(f"there is no auditor {name!r}; installed: {known}", field="auditor")
