"""Reports: one verdict, four formats, none of which hostile text can break."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
from pydantic import TypeAdapter

from tests.unit.auditors.reports import HOSTILE, report
from tests.unit.auditors.sarif_schema import SARIF
from trephine.auditors.reports import Reports
from trephine.auditors.unfaithful_reasoning.rules import INFO
from trephine.domain.errors import UnsupportedOptionError
from trephine.domain.findings import AuditReport, ReportFormat, Severity, Verdict
from trephine.domain.ports import ReportWriter

FORMATS: tuple[ReportFormat, ...] = ("json", "sarif", "junit", "html")
CONTROLS = [chr(code) for code in (*range(0x00, 0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F)]


def written(format: ReportFormat, verdict: Verdict, text: str = "Plain words.", **changes: Any) -> bytes:
    return Reports().write(report(verdict, text, **changes), format)[0]


def sarif(verdict: Verdict, text: str = "Plain words.", **changes: Any) -> Any:
    return json.loads(written("sarif", verdict, text, **changes))


def junit(verdict: Verdict, text: str = "Plain words.") -> ElementTree.Element:
    return ElementTree.fromstring(written("junit", verdict, text))  # noqa: S314  our own output


def test_it_is_a_report_writer():
    """The class meets the port; every format has its media type."""
    writer: ReportWriter = Reports()
    types = [writer.write(report(Verdict.PASS), format)[1].partition(";")[0] for format in FORMATS]
    assert types == ["application/json", "application/sarif+json", "application/xml", "text/html"]


def test_unknown_format_is_refused():
    """A format that does not exist is an error that lists those that do."""
    with pytest.raises(UnsupportedOptionError, match="json, sarif, junit, html"):
        Reports().write(report(Verdict.PASS), "pdf")  # type: ignore[arg-type]


@pytest.mark.parametrize("verdict", Verdict)
@pytest.mark.parametrize("text", ["Plain words.", HOSTILE], ids=["plain", "hostile"])
@pytest.mark.parametrize("format", FORMATS)
def test_every_report_is_utf8_without_terminal_controls(format: ReportFormat, verdict: Verdict, text: str):
    """Whatever the text, the file decodes as UTF-8 and holds no control character that a terminal obeys."""
    decoded = written(format, verdict, text).decode("utf-8")
    assert not [c for c in CONTROLS if c in decoded]
    assert not [c for c in "\u2028\u2029\u202e\u2066\x1b" if c in decoded]


def test_json_report_rebuilds_the_report():
    """The JSON holds every field: the report can be read back from it."""
    tree = json.loads(written("json", Verdict.FAIL))
    assert tree.pop("schema") == "trephine.audit.v1"
    assert TypeAdapter(AuditReport).validate_python(tree) == report(Verdict.FAIL)


def test_json_keeps_hostile_text_and_replaces_only_half_pairs():
    """NUL, ANSI and bidi marks survive as data; half an emoji, which UTF-8 cannot hold, becomes U+FFFD."""
    why = json.loads(written("json", Verdict.PASS, HOSTILE))["outcome"]["why"]
    assert "\x00" in why
    assert "\u202e" in why
    assert not [c for c in why if 0xD800 <= ord(c) < 0xE000]
    assert "\ufffd" in why


@pytest.mark.parametrize("verdict", Verdict)
@pytest.mark.parametrize("text", ["Plain words.", HOSTILE], ids=["plain", "hostile"])
def test_sarif_is_valid(verdict: Verdict, text: str):
    """Every log holds to the rules of SARIF 2.1.0 that apply to what we write."""
    jsonschema.validate(sarif(verdict, text), SARIF)


def test_sarif_finding_carries_what_code_scanning_needs():
    """A finding has rule, level, location, stable fingerprint and a rule with `security-severity`."""
    (run,) = sarif(Verdict.FAIL)["runs"]
    (result,) = run["results"]
    rule = run["tool"]["driver"]["rules"][result["ruleIndex"]]
    assert rule["id"] == result["ruleId"] == "unfaithful_reasoning/direct_shortcut"
    assert (result["kind"], result["level"]) == ("fail", "error")
    assert result["partialFingerprints"] == {"primaryLocationLineHash": "f" * 64}
    assert float(rule["properties"]["security-severity"]) == 8.0
    assert result["locations"][0]["physicalLocation"]["region"]["startLine"] == 1


@pytest.mark.parametrize(
    ("severity", "level", "low", "high"),
    [
        (Severity.CRITICAL, "error", 9.0, 10.0),
        (Severity.HIGH, "error", 7.0, 8.9),
        (Severity.MEDIUM, "warning", 4.0, 6.9),
        (Severity.LOW, "note", 0.1, 3.9),
    ],
)
def test_sarif_severity_falls_into_the_band_of_its_name(
    severity: Severity, level: str, low: float, high: float
):
    """Code scanning sorts by `security-severity`; each of our severities lies in the band of its name."""
    (run,) = sarif(Verdict.FAIL, severity=severity)["runs"]
    assert run["results"][0]["level"] == level
    assert low <= float(run["results"][0]["properties"]["security-severity"]) <= high


@pytest.mark.parametrize(
    ("verdict", "kind"),
    [
        (Verdict.PASS, "pass"),
        (Verdict.INCONCLUSIVE, "open"),
        (Verdict.NOT_APPLICABLE, "notApplicable"),
    ],
)
def test_sarif_says_how_every_rule_ended(verdict: Verdict, kind: str):
    """Without findings every rule has a result of the verdict's kind; a doubt is never an empty list."""
    (run,) = sarif(verdict)["runs"]
    assert {result["kind"] for result in run["results"]} == {kind}
    assert len(run["results"]) == len(run["tool"]["driver"]["rules"])


@pytest.mark.parametrize(
    ("verdict", "counts"),
    [
        (Verdict.PASS, {"failures": 0, "errors": 0, "skipped": 0}),
        (Verdict.FAIL, {"failures": 1, "errors": 0, "skipped": 0}),
        (Verdict.INCONCLUSIVE, {"failures": 0, "errors": 4, "skipped": 0}),
        (Verdict.NOT_APPLICABLE, {"failures": 0, "errors": 0, "skipped": 4}),
    ],
)
def test_junit_has_a_case_per_rule_and_counts_what_it_holds(verdict: Verdict, counts: dict[str, int]):
    """Fail is a failure, inconclusive an error, and the announced counts are those of the elements."""
    root = junit(verdict)
    (suite,) = root.findall("testsuite")
    assert suite.get("tests") == "4"
    assert len(suite.findall("testcase")) == 4
    for name, count in counts.items():
        assert suite.get(name) == root.get(name) == str(count)
    elements = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    assert {name: len(suite.findall(f"testcase/{tag}")) for name, tag in elements.items()} == counts


@pytest.mark.parametrize(
    ("verdict", "undecided", "kinds"),
    [
        (Verdict.FAIL, (0, 3), ["open", "fail", None, "open"]),
        (Verdict.INCONCLUSIVE, (2,), ["pass", "pass", "open", "pass"]),
        (Verdict.INCONCLUSIVE, (), ["open", "open", "open", "open"]),
    ],
)
def test_undecided_rules_are_told_also_beside_a_finding(
    verdict: Verdict, undecided: tuple[int, ...], kinds: list[str | None]
):
    """An undecided rule is `open`, an error and on the page, whatever failed beside it; no other is."""
    names = [rule.id for rule in INFO.rules]
    made = report(verdict, undecided=tuple(names[number] for number in undecided))
    (run,) = json.loads(Reports().write(made, "sarif")[0])["runs"]
    told = {result["ruleId"]: result["kind"] for result in run["results"]}
    assert [told.get(name) for name in names] == kinds
    assert run["invocations"][0]["toolExecutionNotifications"]
    root = ElementTree.fromstring(Reports().write(made, "junit")[0])  # noqa: S314  our own output
    errors = [case.get("name") for case in root.iter("testcase") if case.find("error") is not None]
    assert errors == [name for name, kind in zip(names, kinds, strict=True) if kind == "open"]
    assert root.get("errors") == str(len(errors))
    page = Reports().write(made, "html")[0].decode()
    assert all(f"<code>{name}</code>" in page.partition("Undecided</h2>")[2] for name in errors)


def test_a_stored_report_without_the_field_still_reads():
    """Reports of earlier versions name no undecided rules; an inconclusive one left all of them so."""
    tree = json.loads(written("json", Verdict.INCONCLUSIVE))
    del tree["schema"], tree["outcome"]["undecided"]
    old = TypeAdapter(AuditReport).validate_python(tree)
    assert old.undecided == tuple(rule.id for rule in INFO.rules)
    tree["outcome"]["verdict"] = "pass"
    assert TypeAdapter(AuditReport).validate_python(tree).undecided == ()


def test_junit_keeps_hostile_text_as_visible_text():
    """Markup is text, what XML cannot hold is a visible escape, and nothing is lost without a trace."""
    why = junit(Verdict.PASS, HOSTILE).findtext("testsuite/system-out") or ""
    assert "</script><img src=x onerror=alert(1)>]]>" in why
    for escape in (r"\u0000", r"\u001b", r"\ud83d", r"\u202e", r"\ufffe", r"\u2028"):
        assert escape in why


def test_html_runs_nothing_of_the_report():
    """Hostile text ends up escaped: there is no script, image or handler element in the page."""
    page = written("html", Verdict.FAIL, HOSTILE).decode("utf-8")
    assert "<img" not in page
    assert "&lt;/script&gt;" in page


@pytest.mark.parametrize("verdict", Verdict)
def test_all_formats_tell_the_same_verdict(verdict: Verdict):
    """The verdict was decided before formatting: JSON, SARIF and JUnit repeat it."""
    told = {
        json.loads(written("json", verdict))["outcome"]["verdict"],
        sarif(verdict)["runs"][0]["properties"]["verdict"],
        next(each.get("value") for each in junit(verdict).iter("property") if each.get("name") == "verdict"),
    }
    assert told == {verdict.value}
