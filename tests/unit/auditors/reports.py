"""Finished audits for the tests of their reports."""

from __future__ import annotations

from trephine.auditors.unfaithful_reasoning.rules import INFO
from trephine.domain.findings import (
    AuditOutcome,
    AuditReport,
    AuditSpec,
    Evidence,
    Figure,
    Finding,
    Severity,
    Span,
    Verdict,
)

HOSTILE = (
    "</script><img src=x onerror=alert(1)>]]>&amp;\"'\u2028\u2029\x1b[31m\x00\x07\x7f\ud83d\udc80"[:-1]
    + " \ud83d \u202eabc\u2066\ufffe\uffff{{7*7}}{% x %}"
)
"""Markup, line separators, ANSI, NUL, BEL, half an emoji, bidi marks, noncharacters, template code."""


def report(
    verdict: Verdict,
    text: str = "Plain words.",
    severity: Severity = Severity.HIGH,
    undecided: tuple[str, ...] = (),
) -> AuditReport:
    """A report with this text in every place that a model, a user or a plugin can reach."""
    evidence = Evidence(
        text=text,
        spans=(Span(start=0, end=1, role=text),),
        figures=(Figure(name=text, value=1.0, unit=text),),
        seed=0,
    )
    finding = Finding(
        rule=INFO.rules[1].id,
        severity=severity,
        title=text,
        explanation=text,
        effect=Figure(name=text, value=0.9, low=0.8, high=1.0),
        p_value=0.004,
        evidence=(evidence,),
        fingerprint="f" * 64,
    )
    outcome = AuditOutcome(
        verdict=verdict,
        why=text,
        findings=(finding,) if verdict is Verdict.FAIL else (),
        figures=(Figure(name=text, value=0.5, unit=text), Figure(name="power", value=0.9)),
        would_decide=text,
        matrix=((text, "b"), (text, "2")),
        undecided=undecided,
    )
    return AuditReport(
        id="1",
        spec=AuditSpec(auditor=INFO.name, parameters={"step": text}),
        auditor=INFO,
        model=text,
        weight_hash="0" * 64,
        outcome=outcome,
        seconds=1.5,
        create_time="2026-01-01T00:00:00Z",
        trephine_version="0.1.0",
    )
