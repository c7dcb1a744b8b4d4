"""Audit reports as files. The verdict was decided before: no format looks at findings to decide anew."""

from __future__ import annotations

from trephine.auditors.reports.json import json_report
from trephine.auditors.reports.junit import junit_report
from trephine.auditors.reports.sarif import sarif_report
from trephine.domain.errors import UnsupportedOptionError
from trephine.domain.findings import AuditReport, ReportFormat

__all__ = ["Reports"]


class Reports:
    """The `ReportWriter` port."""

    def write(self, report: AuditReport, format: ReportFormat) -> tuple[bytes, str]:
        """Return the file's bytes and media type.

        Raises:
            UnsupportedOptionError: If there is no such format.
        """
        match format:
            case "json":
                return json_report(report), "application/json"
            case "sarif":
                return sarif_report(report), "application/sarif+json"
            case "junit":
                return junit_report(report), "application/xml"
            case "html":
                # Imported late: only this format needs the templates.
                from trephine.pages.audit_page import audit_html

                return audit_html(report).encode("utf-8"), "text/html; charset=utf-8"
        raise UnsupportedOptionError(
            f"there is no report format {format!r}; known are json, sarif, junit, html", field="format"
        )
