"""Auditors, audit requests, reports."""

from __future__ import annotations

from trephine.domain.errors import InvalidRequestError
from trephine.domain.findings import (
    AuditorInfo,
    AuditReport,
    AuditSpec,
    Evidence,
    Finding,
    ReportFormat,
    Severity,
    Verdict,
)
from trephine.rpc.wire.common import figure_to_wire, version_to_wire
from trephine.rpc.wire.fields import at_least, clean, finite, one_of, qualified, required
from trephine.v1 import audit_service_pb2 as pb

_VERDICTS = {
    Verdict.PASS: pb.VERDICT_PASS,
    Verdict.FAIL: pb.VERDICT_FAIL,
    Verdict.INCONCLUSIVE: pb.VERDICT_INCONCLUSIVE,
    Verdict.NOT_APPLICABLE: pb.VERDICT_NOT_APPLICABLE,
}
_SEVERITIES = {
    Severity.INFO: pb.SEVERITY_INFO,
    Severity.LOW: pb.SEVERITY_LOW,
    Severity.MEDIUM: pb.SEVERITY_MEDIUM,
    Severity.HIGH: pb.SEVERITY_HIGH,
    Severity.CRITICAL: pb.SEVERITY_CRITICAL,
}
_FORMATS: dict[pb.ReportFormat.ValueType, ReportFormat] = {
    pb.REPORT_FORMAT_JSON: "json",
    pb.REPORT_FORMAT_SARIF: "sarif",
    pb.REPORT_FORMAT_JUNIT: "junit",
    pb.REPORT_FORMAT_HTML: "html",
}


def spec_from_wire(request: pb.RunAuditRequest) -> AuditSpec:
    """Read an audit request, with the defaults that the contract states.

    Raises:
        InvalidRequestError: Naming the field.
    """
    limit = 600.0
    if request.HasField("time_limit_seconds"):
        limit = finite(request.time_limit_seconds, "time_limit_seconds")
    if limit <= 0:
        raise InvalidRequestError(
            f"time_limit_seconds must be above 0, got {limit}", field="time_limit_seconds"
        )
    return AuditSpec(
        auditor=required(request.auditor, "auditor"),
        seed=request.seed,
        items=at_least(request.items, 1, "items") if request.HasField("items") else 24,
        time_limit_seconds=limit,
        parameters=dict(request.parameters),
    )


def format_from_wire(number: pb.ReportFormat.ValueType) -> ReportFormat:
    """Read a report format; unspecified is refused."""
    return one_of(number, _FORMATS, "format")


def auditor_to_wire(info: AuditorInfo) -> pb.Auditor:
    """Write an installed auditor."""
    return pb.Auditor(
        name=clean(info.name),
        version=clean(info.version),
        question=clean(info.question),
        evidence=clean(info.evidence),
        blind_spot=clean(info.blind_spot),
        rules=[
            pb.AuditRule(
                id=clean(rule.id),
                title=clean(rule.title),
                description=clean(rule.description),
                help=clean(rule.help),
            )
            for rule in info.rules
        ],
    )


def audit_to_wire(report: AuditReport) -> pb.AuditReport:
    """Write a finished audit."""
    outcome = report.outcome
    return pb.AuditReport(
        name=qualified("audits", report.id),
        auditor=auditor_to_wire(report.auditor),
        verdict=_VERDICTS[outcome.verdict],
        why=clean(outcome.why),
        would_decide=clean(outcome.would_decide),
        findings=[_finding_to_wire(finding) for finding in outcome.findings],
        figures=[figure_to_wire(figure) for figure in outcome.figures],
        matrix=[pb.TableRow(cells=[clean(cell) for cell in row]) for row in outcome.matrix],
        version=version_to_wire(report.model, report.weight_hash),
        seed=report.spec.seed,
        items=report.spec.items,
        seconds=report.seconds,
        create_time=clean(report.create_time),
        trephine_version=clean(report.trephine_version),
        undecided=[clean(rule) for rule in report.undecided],
    )


def _finding_to_wire(finding: Finding) -> pb.Finding:
    return pb.Finding(
        rule=clean(finding.rule),
        severity=_SEVERITIES[finding.severity],
        title=clean(finding.title),
        explanation=clean(finding.explanation),
        effect=figure_to_wire(finding.effect),
        p_value=finding.p_value,
        evidence=[_evidence_to_wire(evidence) for evidence in finding.evidence],
        fingerprint=clean(finding.fingerprint),
    )


def _evidence_to_wire(evidence: Evidence) -> pb.AuditEvidence:
    return pb.AuditEvidence(
        text=clean(evidence.text),
        spans=[pb.AuditSpan(start=one.start, end=one.end, role=clean(one.role)) for one in evidence.spans],
        figures=[figure_to_wire(figure) for figure in evidence.figures],
        seed=evidence.seed,
    )
