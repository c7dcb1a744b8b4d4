"""What the host believes of an outcome: breaches are errors, never softer verdicts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from trephine.domain.errors import AuditorFailedError
from trephine.domain.findings import (
    AuditorInfo,
    AuditOutcome,
    Evidence,
    Figure,
    Finding,
    Rule,
    Severity,
    Span,
    Verdict,
)
from trephine.ipc.outcome_policy import LONGEST_TEXT, require_sound

NAN, INFINITY = float("nan"), float("inf")

INFO = AuditorInfo(
    name="toy",
    version="1",
    question="?",
    evidence="",
    blind_spot="",
    rules=tuple(Rule(id=name, title="", description="", help="") for name in ("toy/rule", "toy/other")),
)
FINDING = Finding(
    rule="toy/rule",
    severity=Severity.HIGH,
    title="",
    explanation="",
    effect=Figure(name="effect", value=0.5, low=0.1, high=0.9),
    p_value=0.01,
    evidence=(Evidence(text="abc", spans=(Span(start=0, end=3, role="hint"),), figures=(), seed=0),),
    fingerprint="f",
)
CONTROLS = Figure(name="controls", value=99)
FAIL = AuditOutcome(verdict=Verdict.FAIL, why="It fails.", findings=(FINDING,), figures=(CONTROLS,))
PASS = AuditOutcome(
    verdict=Verdict.PASS, why="It passes.", findings=(), figures=(Figure(name="power", value=0.8),)
)
OPEN = AuditOutcome(
    verdict=Verdict.INCONCLUSIVE, why="Unknown.", findings=(), figures=(), would_decide="More items."
)
NONE = AuditOutcome(verdict=Verdict.NOT_APPLICABLE, why="No such thing.", findings=(), figures=())


def with_finding(**changes: Any) -> AuditOutcome:
    return replace(FAIL, findings=(replace(FINDING, **changes),))


BOTH = replace(OPEN, findings=(FINDING,), figures=(CONTROLS,))
HALF = replace(FAIL, undecided=("toy/other",), would_decide="More items.")


@pytest.mark.parametrize(
    "outcome", [PASS, FAIL, OPEN, NONE, BOTH, HALF], ids=["pass", "fail", "open", "none", "both", "half"]
)
def test_sound_outcomes_are_believed(outcome: AuditOutcome):
    """Outcomes that keep the rules come back unchanged."""
    assert require_sound(outcome, INFO) is outcome


@pytest.mark.parametrize(
    ("outcome", "says"),
    [
        (replace(PASS, figures=()), "power"),
        (replace(PASS, figures=(Figure(name="power", value=0.79),)), "power"),
        (replace(PASS, figures=(Figure(name="power", value=NAN),)), "not finite"),
        (replace(PASS, findings=(FINDING,), figures=(*PASS.figures, CONTROLS)), "it has findings"),
        (replace(PASS, why=" "), "does not say why"),
        (replace(FAIL, findings=()), "no finding with a causal effect"),
        (replace(FAIL, figures=()), "controls"),
        (replace(FAIL, figures=(replace(CONTROLS, value=98),)), "controls"),
        (with_finding(p_value=0.06), "no causal effect"),
        (replace(FAIL, findings=(FINDING, replace(FINDING, p_value=1.0))), "no causal effect"),
        (replace(BOTH, findings=(replace(FINDING, p_value=0.9),)), "no causal effect"),
        (replace(BOTH, figures=()), "findings and no figure `controls`"),
        (replace(BOTH, figures=(replace(CONTROLS, value=98),)), "findings and no figure `controls`"),
        (replace(NONE, findings=(FINDING,), figures=(CONTROLS,)), "it has findings"),
        (replace(NONE, undecided=("toy/rule",), would_decide="More."), "undecided rules"),
        (replace(PASS, undecided=("toy/rule",), would_decide="More."), "undecided rules"),
        (replace(HALF, would_decide=" "), "what would decide"),
        (replace(HALF, undecided=("toy/third",)), "'toy/third' is no rule"),
        (replace(HALF, undecided=("toy/rule",)), "'toy/rule' has a finding"),
        (with_finding(p_value=0.0), "p-value 0.0"),
        (with_finding(p_value=NAN), "p-value nan"),
        (with_finding(p_value=-1.0), "p-value -1.0"),
        (with_finding(effect=Figure(name="effect", value=0.0)), "no effect"),
        (with_finding(effect=Figure(name="effect", value=NAN)), "not finite"),
        (with_finding(effect=Figure(name="effect", value=INFINITY)), "not finite"),
        (with_finding(effect=Figure(name="effect", value=1.0, low=NAN, high=2.0)), "not finite"),
        (with_finding(effect=Figure(name="effect", value=1.0, low=2.0, high=0.0)), "wrong way round"),
        (with_finding(rule="other/rule"), "names no rule"),
        (with_finding(fingerprint=""), "no fingerprint"),
        (
            with_finding(evidence=(replace(FINDING.evidence[0], spans=(Span(start=2, end=9, role="x"),)),)),
            "outside its text",
        ),
        (with_finding(evidence=FINDING.evidence * 21), "pieces of evidence"),
        (with_finding(title="x" * (LONGEST_TEXT + 1)), "longer than"),
        (replace(FAIL, findings=(FINDING,) * 1001), "more than 1000 findings"),
        (replace(OPEN, would_decide=""), "what would decide"),
        (replace(OPEN, figures=(Figure(name="x", value=-INFINITY),)), "not finite"),
    ],
)
def test_breaches_are_errors(outcome: AuditOutcome, says: str):
    """Every rule that is broken makes the audit an error which names it."""
    with pytest.raises(AuditorFailedError, match=says):
        require_sound(outcome, INFO)
