"""Files of an audit's report, and the request for one."""

from __future__ import annotations

from trephine.client import requests
from trephine.client.types import AuditReport, ReportFormat
from trephine.v1 import audit_service_pb2

FILE_NAMES = {
    ReportFormat.JSON: "audit.json",
    ReportFormat.SARIF: "audit.sarif",
    ReportFormat.JUNIT: "audit.junit.xml",
    ReportFormat.HTML: "audit.html",
}


def render_request(
    report: AuditReport | str, form: ReportFormat
) -> audit_service_pb2.RenderAuditReportRequest:
    """Ask for a rendered report."""
    name = report if isinstance(report, str) else report.name
    return audit_service_pb2.RenderAuditReportRequest(
        name=requests.resource("audits", name),
        format=audit_service_pb2.ReportFormat.Value(f"REPORT_FORMAT_{form.value.upper()}"),
    )
