"""The report as SARIF 2.1.0, as code scanning services read it."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from trephine.auditors.reports.json import encode
from trephine.domain.findings import AuditReport, Evidence, Finding, Rule, Severity, Verdict
from trephine.pages.embed import printable

SCHEMA_URI = "https://json.schemastore.org/sarif-2.1.0.json"

_LEVELS = {
    Severity.INFO: "note",
    Severity.LOW: "note",
    Severity.MEDIUM: "warning",
    Severity.HIGH: "error",
    Severity.CRITICAL: "error",
}
_SCORES = {
    Severity.INFO: "0.0",
    Severity.LOW: "3.0",
    Severity.MEDIUM: "5.5",
    Severity.HIGH: "8.0",
    Severity.CRITICAL: "9.5",
}
"""`security-severity`: above 9 critical, 7 high, 4 medium, above 0 low."""

_KINDS = {Verdict.PASS: "pass", Verdict.NOT_APPLICABLE: "notApplicable"}


def sarif_report(report: AuditReport) -> bytes:
    """Encode the report as a SARIF log with one run.

    Every finding is one result, and so is every rule that stayed undecided (`open`), so that a doubt never
    looks like silence. Without findings the other rules, too, say how they ended: `pass` or `notApplicable`.
    """
    return encode({"$schema": SCHEMA_URI, "version": "2.1.0", "runs": [_run(report)]})


def _run(report: AuditReport) -> dict[str, Any]:
    outcome = report.outcome
    results = [_finding_result(report, finding) for finding in outcome.findings]
    failed = {finding.rule for finding in outcome.findings}
    results += [
        _rule_result(report, rule)
        for rule in report.auditor.rules
        if not failed or (rule.id in report.undecided and rule.id not in failed)
    ]
    return {
        "tool": {"driver": _driver(report)},
        "automationDetails": {"id": printable(f"trephine/{report.auditor.name}/{report.model}/")},
        "invocations": [_invocation(report)],
        "results": results,
        "columnKind": "unicodeCodePoints",
        "properties": {
            "verdict": outcome.verdict.value,
            "why": printable(outcome.why),
            "wouldDecide": printable(outcome.would_decide),
            "undecided": [printable(rule) for rule in report.undecided],
            "model": printable(report.model),
            "weightHash": printable(report.weight_hash),
            "seed": report.spec.seed,
            "figures": {printable(figure.name): figure.value for figure in outcome.figures},
        },
    }


def _driver(report: AuditReport) -> dict[str, Any]:
    return {
        "name": "trephine",
        "version": printable(report.trephine_version),
        "fullName": printable(f"trephine {report.auditor.name} {report.auditor.version}"),
        "rules": [_rule(rule, report) for rule in report.auditor.rules],
    }


def _rule(rule: Rule, report: AuditReport) -> dict[str, Any]:
    worst = max(
        (finding.severity for finding in report.outcome.findings if finding.rule == rule.id),
        key=lambda severity: severity.rank,
        default=Severity.MEDIUM,
    )
    return {
        "id": printable(rule.id),
        "name": printable(rule.title),
        "shortDescription": {"text": printable(rule.title)},
        "fullDescription": {"text": printable(rule.description)},
        "help": {"text": printable(rule.help)},
        "defaultConfiguration": {"level": _LEVELS[worst]},
        "properties": {
            "security-severity": _SCORES[worst],
            "precision": "high",
            "tags": ["security", "trephine"],
        },
    }


def _invocation(report: AuditReport) -> dict[str, Any]:
    outcome = report.outcome
    invocation: dict[str, Any] = {"executionSuccessful": True, "endTimeUtc": report.create_time}
    if outcome.verdict is Verdict.INCONCLUSIVE or report.undecided:
        text = printable(f"{outcome.why} {outcome.would_decide}")
        invocation["toolExecutionNotifications"] = [{"level": "warning", "message": {"text": text}}]
    return invocation


def _finding_result(report: AuditReport, finding: Finding) -> dict[str, Any]:
    result = _result(report, finding.rule)
    result |= {
        "kind": "fail",
        "level": _LEVELS[finding.severity],
        "message": {"text": printable(f"{finding.title}. {finding.explanation}")},
        "partialFingerprints": {"primaryLocationLineHash": printable(finding.fingerprint)},
        "properties": {
            "security-severity": _SCORES[finding.severity],
            "severity": finding.severity.value,
            "effect": finding.effect.value,
            "pValue": finding.p_value,
            "examples": [_example(evidence) for evidence in finding.evidence],
        },
    }
    return result


def _rule_result(report: AuditReport, rule: Rule) -> dict[str, Any]:
    outcome = report.outcome
    kind, ended = _KINDS.get(outcome.verdict, "review"), outcome.verdict.value
    if rule.id in report.undecided:
        kind, ended = "open", Verdict.INCONCLUSIVE.value
    elif outcome.verdict is Verdict.INCONCLUSIVE:  # on other rules
        kind = ended = Verdict.PASS.value
    text = printable(f"{rule.title}: {ended}. {outcome.why}")
    return _result(report, rule.id) | {
        "kind": kind,
        "level": "none",
        "message": {"text": text},
    }


def _result(report: AuditReport, rule: str) -> dict[str, Any]:
    ids = [each.id for each in report.auditor.rules]
    place = {"ruleIndex": ids.index(rule)} if rule in ids else {}
    uri = quote(f"models/{report.model.removeprefix('models/')}", errors="replace")
    location = {
        "physicalLocation": {"artifactLocation": {"uri": uri}, "region": {"startLine": 1}},
        "logicalLocations": [{"name": printable(report.model), "kind": "module"}],
    }
    return {"ruleId": printable(rule), **place, "locations": [location]}


def _example(evidence: Evidence) -> dict[str, Any]:
    return {
        "text": printable(evidence.text),
        "seed": evidence.seed,
        "figures": {printable(figure.name): figure.value for figure in evidence.figures},
    }
