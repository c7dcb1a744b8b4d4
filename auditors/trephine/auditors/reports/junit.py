"""The report as JUnit XML: one test case per rule. A doubt is an error, never a pass and never skipped."""

from __future__ import annotations

from xml.etree.ElementTree import Element, SubElement, tostring

from trephine.domain.findings import AuditReport, Finding, Rule, Verdict
from trephine.pages.embed import printable


def junit_report(report: AuditReport) -> bytes:
    """Encode the report as UTF-8 XML.

    A rule with findings is a `failure`; an undecided rule is an `error`, also where others failed; one of an
    audit that does not apply is `skipped`.
    """
    outcome, rules = report.outcome, report.auditor.rules
    failed = {finding.rule for finding in outcome.findings}
    counts: dict[str, int | str] = {
        "tests": len(rules),
        "failures": sum(rule.id in failed for rule in rules),
        "errors": sum(_is_undecided(report, rule, failed) for rule in rules),
        "skipped": sum(_is_skipped(report, rule, failed) for rule in rules),
        "time": f"{report.seconds:.3f}",
    }
    suites = Element("testsuites", {"name": "trephine", **_attributes(counts)})
    suite = SubElement(suites, "testsuite", {"name": _text(report.auditor.name), **_attributes(counts)})
    suite.set("timestamp", _text(report.create_time))
    _add_properties(suite, report)
    for rule in rules:
        _add_case(suite, report, rule, failed)
    SubElement(suite, "system-out").text = _text(outcome.why)
    return bytes(tostring(suites, encoding="utf-8", xml_declaration=True))


def _is_undecided(report: AuditReport, rule: Rule, failed: set[str]) -> bool:
    return rule.id in report.undecided and rule.id not in failed


def _is_skipped(report: AuditReport, rule: Rule, failed: set[str]) -> bool:
    return report.outcome.verdict is Verdict.NOT_APPLICABLE and rule.id not in failed


def _add_properties(suite: Element, report: AuditReport) -> None:
    properties = SubElement(suite, "properties")
    named = {
        "model": report.model,
        "weight_hash": report.weight_hash,
        "verdict": report.outcome.verdict.value,
        "seed": str(report.spec.seed),
        "items": str(report.spec.items),
        "trephine_version": report.trephine_version,
    }
    named |= {figure.name: f"{figure.value:.6g} {figure.unit}".strip() for figure in report.outcome.figures}
    for name, value in named.items():
        SubElement(properties, "property", {"name": _text(name), "value": _text(value)})


def _add_case(suite: Element, report: AuditReport, rule: Rule, failed: set[str]) -> None:
    outcome = report.outcome
    case = SubElement(suite, "testcase")
    case.attrib.update({"classname": _text(report.auditor.name), "name": _text(rule.id), "time": "0"})
    for finding in outcome.findings:
        if finding.rule == rule.id:
            failure = SubElement(case, "failure", {"type": finding.severity.value})
            failure.set("message", _text(finding.title))
            failure.text = _text(_finding_text(finding, rule))
    if _is_undecided(report, rule, failed):
        error = SubElement(case, "error", {"type": "inconclusive", "message": _text(outcome.why)})
        error.text = _text(outcome.would_decide)
    elif _is_skipped(report, rule, failed):
        SubElement(case, "skipped", {"message": _text(outcome.why)})


def _finding_text(finding: Finding, rule: Rule) -> str:
    lines = [
        finding.explanation,
        f"effect {finding.effect.value:.4g}, p = {finding.p_value:.4g}, severity {finding.severity.value}",
        f"fingerprint {finding.fingerprint}",
        rule.help,
        *(f"example (seed {evidence.seed}):\n{evidence.text}" for evidence in finding.evidence),
    ]
    return "\n".join(lines)


def _attributes(counts: dict[str, int | str]) -> dict[str, str]:
    return {name: str(value) for name, value in counts.items()}


def _text(text: str) -> str:
    """What XML 1.0 can hold: controls, halves of pairs and noncharacters become visible escapes."""
    return "".join(
        f"\\u{ord(character):04x}" if character in "\ufffe\uffff" else character
        for character in printable(text)
    )
