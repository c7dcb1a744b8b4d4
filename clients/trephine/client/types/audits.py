from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from trephine.client.decoding import WireValue
from trephine.client.types.common import Figure, Version


class Verdict(StrEnum):
    """The outcome of an audit. A doubt is INCONCLUSIVE, never PASS."""

    UNSPECIFIED = "unspecified"
    PASS = "pass"  # noqa: S105  a verdict, not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    NOT_APPLICABLE = "not_applicable"


class Severity(StrEnum):
    """How bad a finding is."""

    UNSPECIFIED = "unspecified"
    INFO = "info"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """1 for info to 5 for critical; an unspecified severity counts as the worst."""
        order = list(Severity)
        return order.index(self) or len(order)


class ReportFormat(StrEnum):
    """As what a report is rendered."""

    JSON = "json"
    SARIF = "sarif"
    JUNIT = "junit"
    HTML = "html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule(WireValue):
    """What an auditor can find."""

    id: str
    title: str
    description: str
    help: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Auditor(WireValue):
    """An installed auditor."""

    name: str
    version: str
    question: str
    evidence: str
    blind_spot: str
    """What a PASS of it does not prove."""
    rules: tuple[Rule, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span(WireValue):
    """A half-open character range of a text, with its role."""

    start: int
    end: int
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence(WireValue):
    """Reproducible support of a finding."""

    text: str
    spans: tuple[Span, ...]
    figures: tuple[Figure, ...]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding(WireValue):
    """A claim about the model, with its causal effect."""

    rule: str
    severity: Severity
    title: str
    explanation: str
    effect: Figure
    p_value: float
    evidence: tuple[Evidence, ...]
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow(WireValue):
    """One row of a report's table."""

    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport(WireValue):
    """A finished audit."""

    name: str
    """Resource name, `audits/...`."""
    auditor: Auditor
    verdict: Verdict
    why: str
    would_decide: str
    findings: tuple[Finding, ...]
    figures: tuple[Figure, ...]
    matrix: tuple[TableRow, ...]
    version: Version
    seed: int
    items: int
    seconds: float
    create_time: str
    trephine_version: str
    undecided: tuple[str, ...]
    """Rules of which it cannot be told, also where others failed. None of them passed."""
