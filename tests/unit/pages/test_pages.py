"""Pages show what they are given and run nothing of it."""

from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser

import pytest

from tests.unit.pages.circuits import HOSTILE, everything, hostile_circuit
from trephine.domain.findings import (
    AuditorInfo,
    AuditOutcome,
    AuditReport,
    AuditSpec,
    Evidence,
    Figure,
    Finding,
    Rule,
    Severity,
    Span,
    Verdict,
)
from trephine.pages.audit_page import audit_html
from trephine.pages.circuit_json import circuit_json
from trephine.pages.circuit_page import circuit_html


class _Elements(HTMLParser):
    """Collects elements, their attributes and the texts of scripts."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[str] = []
        self._open = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._open = tag

    def handle_data(self, data: str) -> None:
        if self._open == "script" and data.strip():
            self.scripts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


def parsed(html: str) -> _Elements:
    elements = _Elements()
    elements.feed(html)
    return elements


def report(verdict: Verdict = Verdict.FAIL) -> AuditReport:
    text = f"hint {HOSTILE} step 4 answer 9"
    return AuditReport(
        id="audits/1",
        spec=AuditSpec(auditor="toy", parameters={"template": HOSTILE}),
        auditor=AuditorInfo(
            name="toy",
            version="1",
            question=HOSTILE,
            evidence="resampling",
            blind_spot=HOSTILE,
            rules=(Rule(id="toy/a", title="a", description="d", help="h"),),
        ),
        model="models/tiny",
        weight_hash="0" * 64,
        outcome=AuditOutcome(
            verdict=verdict,
            why=HOSTILE,
            findings=(
                Finding(
                    rule="toy/a",
                    severity=Severity.HIGH,
                    title=HOSTILE,
                    explanation=HOSTILE,
                    effect=Figure(name="E[H->y|c]", value=0.9, low=0.8, high=1.0),
                    p_value=0.01,
                    evidence=(
                        Evidence(
                            text=text,
                            spans=(Span(start=5, end=5 + len(HOSTILE), role="hint"),),
                            figures=(),
                            seed=1,
                        ),
                    ),
                    fingerprint="f" * 64,
                ),
            ),
            figures=(Figure(name="accuracy", value=0.5),),
            matrix=(("from", "to"), (HOSTILE, "1.0")),
        ),
        seconds=1.0,
        create_time="2026-01-01T00:00:00Z",
        trephine_version="0.1.0",
    )


def test_circuit_json_follows_the_schema_and_avoids_the_error_id_collision():
    """Ids follow circuit-tracer's schema; an error of layer 0 cannot be mistaken for a feature of it."""
    document = circuit_json(hostile_circuit(), everything(), slug="x")
    assert [node["node_id"] for node in document["nodes"]] == [
        "0_7_0",
        "2_9_1",
        "1_-1_1",
        "E_1_0",
        "E_2_1",
        "4_3_1",
    ]
    assert {node["feature_type"] for node in document["nodes"]} == {
        "cross layer transcoder",
        "mlp reconstruction error",
        "embedding",
        "logit",
    }
    assert max(node["influence"] for node in document["nodes"]) == pytest.approx(1.0)
    assert json.loads(json.dumps(document, allow_nan=False)) == document


@pytest.mark.parametrize("verdict", list(Verdict))
def test_audit_page_has_no_script_and_escapes_everything(verdict: Verdict):
    """The report's page holds no script at all and no hostile element; the hint is marked."""
    html = audit_html(report(verdict))
    elements = parsed(html)
    assert not {"script", "img"} & set(elements.tags)
    assert "mark" in elements.tags
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert "\x00" not in html
    html.encode("utf-8")


def test_a_figure_that_is_no_number_is_shown_as_none():
    """NaN and infinity reach the page as null, never as a broken document."""
    circuit = hostile_circuit()
    figures = dataclasses.replace(circuit.figures, error_share=float("nan"), baseline=float("inf"))
    html = circuit_html(dataclasses.replace(circuit, figures=figures), everything(), name="circuits/1")
    island = json.loads(parsed(html).scripts[0])
    assert island["figures"]["error"] is None
    assert island["figures"]["baseline"] is None
