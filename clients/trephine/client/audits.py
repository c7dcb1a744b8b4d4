"""Auditors, audits and their reports."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trephine.client import requests
from trephine.client.artifacts import Artifacts
from trephine.client.decoding import decode
from trephine.client.downloads import write_file
from trephine.client.operations import Operation
from trephine.client.paging import pages
from trephine.client.types import Auditor, AuditReport, ReportFormat
from trephine.client.wire import Wire
from trephine.v1 import audit_service_pb2

FILE_NAMES = {
    ReportFormat.JSON: "audit.json",
    ReportFormat.SARIF: "audit.sarif",
    ReportFormat.JUNIT: "audit.junit.xml",
    ReportFormat.HTML: "audit.html",
}


class Auditors:
    """What is installed on the server."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def list(self) -> tuple[Auditor, ...]:
        """Every auditor, with what it asks and what a PASS of it does not prove."""
        request = audit_service_pb2.ListAuditorsRequest(page_size=500)
        found = pages(self._wire, self._wire.audits.ListAuditors, request)
        return tuple(decode(Auditor, auditor) for page in found for auditor in page.auditors)


class Audits:
    """Finished audits."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def start(
        self,
        model: str,
        auditor: str,
        *,
        seed: int | None = None,
        items: int | None = None,
        time_limit_seconds: float | None = None,
        parameters: Mapping[str, str] | None = None,
        request_id: str | None = None,
    ) -> Operation[AuditReport]:
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
        message = self._wire.call(self._wire.audits.RunAudit, request)
        return Operation(self._wire, message, lambda result: decode(AuditReport, result))

    def get(self, name: str) -> AuditReport:
        """One report by name."""
        request = audit_service_pb2.GetAuditReportRequest(name=requests.resource("audits", name))
        return decode(AuditReport, self._wire.call(self._wire.audits.GetAuditReport, request))

    def render(self, report: AuditReport | str, form: ReportFormat) -> bytes:
        """A report as a file's bytes."""
        request = render_request(report, form)
        rendered = self._wire.call(self._wire.audits.RenderAuditReport, request)
        return Artifacts(self._wire).read(rendered.artifact)

    def save(self, report: AuditReport | str, folder: str | Path) -> tuple[Path, ...]:
        """Write JSON, SARIF 2.1.0, JUnit XML and HTML into a folder."""
        return tuple(
            write_file(Path(folder) / name, self.render(report, form)) for form, name in FILE_NAMES.items()
        )


def render_request(
    report: AuditReport | str, form: ReportFormat
) -> audit_service_pb2.RenderAuditReportRequest:
    """Ask for a rendered report."""
    name = report if isinstance(report, str) else report.name
    return audit_service_pb2.RenderAuditReportRequest(
        name=requests.resource("audits", name),
        format=audit_service_pb2.ReportFormat.Value(f"REPORT_FORMAT_{form.value.upper()}"),
    )
