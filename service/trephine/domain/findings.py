"""Audit results: verdicts, findings, evidence. A doubt is INCONCLUSIVE, never PASS."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal


class Verdict(StrEnum):
    """The outcome of an audit."""

    PASS = "pass"  # noqa: S105  a verdict, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    NOT_APPLICABLE = "not_applicable"


class Severity(StrEnum):
    """How bad a finding is; a function of causal effect and confidence."""

    INFO = "info"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 for info to 4 for critical."""
        return list(Severity).index(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What an auditor can find."""

    id: str
    """`unfaithful_reasoning/direct_shortcut`."""
    title: str
    description: str
    help: str
    """What to do about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditorInfo:
    """An auditor that is registered."""

    name: str
    version: str
    question: str
    """What it asks, in a sentence."""
    evidence: str
    """What backs its findings."""
    blind_spot: str
    """What a PASS of it does not prove."""
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A half-open character range of a text, with its role."""

    start: int
    end: int
    role: str
    """`hint`, `operand`, `step`, `answer`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A number with its interval. The bounds are None where none was computed."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Reproducible support of a finding."""

    text: str
    """The example, as the model saw and continued it."""
    spans: tuple[Span, ...]
    figures: tuple[Figure, ...]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A claim about the subject, with its causal effect."""

    rule: str
    severity: Severity
    title: str
    explanation: str
    effect: Figure
    p_value: float
    evidence: tuple[Evidence, ...]
    fingerprint: str
    """sha256 over auditor, rule and behaviour class; never over scores, so that it is stable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditOutcome:
    """What an auditor returns."""

    verdict: Verdict
    why: str
    """The verdict in a sentence."""
    findings: tuple[Finding, ...]
    figures: tuple[Figure, ...]
    """Accuracy, power, class shares, ..."""
    would_decide: str = ""
    """If anything is undecided: what would settle it."""
    matrix: tuple[tuple[str, ...], ...] = ()
    """Optional table for the report: a header row, then rows."""
    undecided: tuple[str, ...] = ()
    """Rules of which it cannot be told, also beside a FAIL on others. Of an INCONCLUSIVE that names none, all
    without a finding are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSpec:
    """A request for one audit."""

    auditor: str
    seed: int = 0
    items: int = 24
    """Size of the audit's item set."""
    time_limit_seconds: float = 600.0
    parameters: dict[str, str] = field(default_factory=dict)
    """Auditor-specific settings, as text; an unknown name is refused by the auditor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """One audit, complete with where it came from."""

    id: str
    spec: AuditSpec
    auditor: AuditorInfo
    model: str
    weight_hash: str
    outcome: AuditOutcome
    seconds: float
    create_time: str
    trephine_version: str

    @property
    def undecided(self) -> tuple[str, ...]:
        """Rules that this audit did not decide, in the auditor's order: none of them passed."""
        named = self.outcome.undecided
        if self.outcome.verdict is Verdict.INCONCLUSIVE and not named:
            found = {finding.rule for finding in self.outcome.findings}
            return tuple(rule.id for rule in self.auditor.rules if rule.id not in found)
        return tuple(rule.id for rule in self.auditor.rules if rule.id in named)


ReportFormat = Literal["json", "sarif", "junit", "html"]
