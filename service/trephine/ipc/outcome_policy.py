"""What an auditor's outcome must hold before anybody may rely on it. A breach is an error, never a verdict.

The host does not soften an outcome that breaks a rule (to INCONCLUSIVE, say): a plugin that claims a PASS it
has no power for, or a FAIL without a causal effect, is broken, and its other claims are worth no more.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite

from trephine.domain.errors import AuditorFailedError
from trephine.domain.findings import AuditorInfo, AuditOutcome, Figure, Finding, Verdict

SIGNIFICANCE = 0.05
FEWEST_CONTROLS = 99
LEAST_POWER = 0.8

MOST_FINDINGS = 1_000
MOST_EVIDENCE = 20
LONGEST_TEXT = 20_000


def require_sound(outcome: AuditOutcome, auditor: AuditorInfo) -> AuditOutcome:
    """Return the outcome if it may be relied on.

    * Every number is finite, and no interval is the wrong way round.
    * Every finding names a rule of its auditor and has a causal effect: other than 0, with 0 < p <= 0.05,
      and a figure `controls` of at least 99 beside it. (p counts the measured case itself,
      (1 + #) / (controls + 1), so it is never 0.)
    * FAIL: a finding.
    * PASS: no finding, nothing undecided, and a figure `power` of at least 0.8.
    * NOT_APPLICABLE: no finding, nothing undecided.
    * INCONCLUSIVE, and whatever leaves a rule undecided: it says what would decide it.
    * An undecided rule is one of its auditor's that has no finding.
    * Nothing is longer than a report can hold.

    Raises:
        AuditorFailedError: Naming the first rule that is broken.
    """
    for breach in _breaches(outcome, auditor):
        raise AuditorFailedError(
            f"{auditor.name} returned {outcome.verdict.value.upper()}, but {breach}", auditor=auditor.name
        )
    return outcome


def _breaches(outcome: AuditOutcome, auditor: AuditorInfo) -> Iterator[str]:
    if not outcome.why.strip():
        yield "it does not say why"
    yield from _size_breaches(outcome)
    for figure in outcome.figures:
        yield from _figure_breaches(figure, f"its figure {figure.name!r}")
    for finding in outcome.findings:
        yield from _finding_breaches(finding, auditor)
    if outcome.findings and not _value(outcome, "controls") >= FEWEST_CONTROLS:
        yield f"it has findings and no figure `controls` of at least {FEWEST_CONTROLS}"
    yield from _doubt_breaches(outcome, auditor)
    match outcome.verdict:
        case Verdict.FAIL if not outcome.findings:
            yield f"it has no finding with a causal effect at p <= {SIGNIFICANCE}"
        case Verdict.PASS:
            yield from _clear_breaches(outcome)
            yield from _power_breaches(outcome)
        case Verdict.NOT_APPLICABLE:
            yield from _clear_breaches(outcome)


def _doubt_breaches(outcome: AuditOutcome, auditor: AuditorInfo) -> Iterator[str]:
    known, found = {rule.id for rule in auditor.rules}, {finding.rule for finding in outcome.findings}
    for rule in outcome.undecided:
        if rule not in known:
            yield f"its undecided {rule!r} is no rule of this auditor"
        if rule in found:
            yield f"its undecided {rule!r} has a finding"
    if (outcome.verdict is Verdict.INCONCLUSIVE or outcome.undecided) and not outcome.would_decide.strip():
        yield "it does not say what would decide it"


def _clear_breaches(outcome: AuditOutcome) -> Iterator[str]:
    if outcome.findings:
        yield "it has findings"
    if outcome.undecided:
        yield "it has undecided rules"


def _power_breaches(outcome: AuditOutcome) -> Iterator[str]:
    if _value(outcome, "power") < LEAST_POWER:
        yield f"it has no figure `power` of at least {LEAST_POWER}, so it might have overlooked what it seeks"


def _finding_breaches(finding: Finding, auditor: AuditorInfo) -> Iterator[str]:
    where = f"its finding {finding.rule!r}"
    if finding.rule not in {rule.id for rule in auditor.rules}:
        yield f"{where} names no rule of this auditor"
    yield from _figure_breaches(finding.effect, f"the effect of {where}")
    if finding.effect.value == 0:
        yield f"{where} has no effect"
    if not 0 < finding.p_value <= 1:
        yield f"{where} has the p-value {finding.p_value}"
    elif finding.p_value > SIGNIFICANCE:
        yield f"{where} has no causal effect at p <= {SIGNIFICANCE}: its p-value is {finding.p_value:.3g}"
    if not finding.fingerprint.strip():
        yield f"{where} has no fingerprint"
    for evidence in finding.evidence:
        for figure in evidence.figures:
            yield from _figure_breaches(figure, f"the evidence of {where}")
        for span in evidence.spans:
            if not 0 <= span.start <= span.end <= len(evidence.text):
                yield f"a span of {where} lies outside its text"


def _figure_breaches(figure: Figure, where: str) -> Iterator[str]:
    numbers = [number for number in (figure.low, figure.value, figure.high) if number is not None]
    if not all(isfinite(number) for number in numbers):
        yield f"{where} is not finite"
    elif figure.low is not None and figure.high is not None and not figure.low <= figure.high:
        yield f"{where} has its bounds the wrong way round"


def _size_breaches(outcome: AuditOutcome) -> Iterator[str]:
    if len(outcome.findings) > MOST_FINDINGS:
        yield f"it has more than {MOST_FINDINGS} findings"
    if any(len(finding.evidence) > MOST_EVIDENCE for finding in outcome.findings):
        yield f"a finding has more than {MOST_EVIDENCE} pieces of evidence"
    texts = [outcome.why, outcome.would_decide, *(cell for row in outcome.matrix for cell in row)]
    for finding in outcome.findings:
        texts += [finding.title, finding.explanation, *(each.text for each in finding.evidence)]
    if any(len(text) > LONGEST_TEXT for text in texts):
        yield f"a text is longer than {LONGEST_TEXT} characters"


def _value(outcome: AuditOutcome, name: str) -> float:
    return next((figure.value for figure in outcome.figures if figure.name == name), float("-inf"))
