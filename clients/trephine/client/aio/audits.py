"""Auditors, audits and their reports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trephine.client import requests
from trephine.client.aio.artifacts import AsyncArtifacts
from trephine.client.aio.blocking import run_blocking
from trephine.client.aio.operations import AsyncOperation
from trephine.client.aio.wire import AsyncWire
from trephine.client.audit_reports import FILE_NAMES, render_request
from trephine.client.decoding import decode
from trephine.client.downloads import write_file
from trephine.client.types import Auditor, AuditReport, ReportFormat
from trephine.v1 import audit_service_pb2


class AsyncAuditors:
    """What is installed on the server."""

    def __init__(self, wire: AsyncWire) -> None:
        self._wire = wire

    async def list(self) -> tuple[Auditor, ...]:
        """Every auditor, with what it asks and what a PASS of it does not prove."""
        request = audit_service_pb2.ListAuditorsRequest(page_size=500)
        found = self._wire.pages(self._wire.audits.ListAuditors, request)
        return tuple([decode(Auditor, auditor) async for page in found for auditor in page.auditors])


class AsyncAudits:
    """Finished audits."""

    def __init__(self, wire: AsyncWire) -> None:
        self._wire = wire

    async def start(
        self,
        model: str,
        auditor: str,
        *,
        seed: int | None = None,
        items: int | None = None,
        time_limit_seconds: float | None = None,
        parameters: Mapping[str, str] | None = None,
        request_id: str | None = None,
    ) -> AsyncOperation[AuditReport]:
        """Start an audit of a loaded model."""
        request = requests.audit(
            requests.resource("models", model),
            auditor,
            request_id,
            seed=seed,
            items=items,
            time_limit_seconds=time_limit_seconds,
            parameters=parameters,
        )
        message = await self._wire.call(self._wire.audits.RunAudit, request)
        return AsyncOperation(self._wire, message, lambda result: decode(AuditReport, result))

    async def get(self, name: str) -> AuditReport:
        """One report by name."""
        request = audit_service_pb2.GetAuditReportRequest(name=requests.resource("audits", name))
        return decode(AuditReport, await self._wire.call(self._wire.audits.GetAuditReport, request))

    async def render(self, report: AuditReport | str, form: ReportFormat) -> bytes:
        """A report as a file's bytes."""
        request = render_request(report, form)
        rendered = await self._wire.call(self._wire.audits.RenderAuditReport, request)
        return await AsyncArtifacts(self._wire).read(rendered.artifact)

    async def save(self, report: AuditReport | str, folder: str | Path) -> tuple[Path, ...]:
        """Write JSON, SARIF 2.1.0, JUnit XML and HTML into a folder."""
        written = []
        for form, name in FILE_NAMES.items():
            data = await self.render(report, form)
            written.append(await run_blocking(write_file, Path(folder) / name, data))
        return tuple(written)
