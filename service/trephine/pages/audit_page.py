"""An audit report as one self-contained page without any script."""

from __future__ import annotations

from jinja2 import Environment
from markupsafe import Markup, escape

from trephine.domain.findings import AuditReport, Evidence, Figure, Span, Verdict
from trephine.pages.embed import asset, content_policy, printable

_VERDICTS = {
    Verdict.PASS: "PASS",
    Verdict.FAIL: "FAIL",
    Verdict.INCONCLUSIVE: "INCONCLUSIVE",
    Verdict.NOT_APPLICABLE: "NOT APPLICABLE",
}


def audit_html(report: AuditReport) -> str:
    """Return the page: verdict, findings with marked examples, figures, and what a PASS does not prove."""
    return _TEMPLATES.from_string(asset("audit.html")).render(
        report=report,
        verdict=_VERDICTS[report.outcome.verdict],
        policy=content_policy(),
        style=Markup(asset("look.css") + asset("audit.css")),  # noqa: S704  our own files
    )


def _marked(evidence: Evidence) -> Markup:
    """The example with its spans marked; overlapping spans are cut at the later one's start."""
    pieces, at = [], 0
    for span in sorted(evidence.spans, key=lambda span: span.start):
        if not at <= span.start < span.end <= len(evidence.text):
            continue
        pieces.append(escape(printable(evidence.text[at : span.start])))
        pieces.append(_mark(span, evidence.text[span.start : span.end]))
        at = span.end
    pieces.append(escape(printable(evidence.text[at:])))
    return Markup("").join(pieces)


def _mark(span: Span, text: str) -> Markup:
    role = span.role if span.role.isidentifier() else "other"
    return Markup('<mark class="{}" title="{}">{}</mark>').format(role, printable(span.role), printable(text))


def _value(figure: Figure) -> str:
    unit = f" {printable(figure.unit)}" if figure.unit else ""
    return f"{figure.value:.4g}{unit}"


def _interval(figure: Figure) -> str:
    return "" if figure.low is None or figure.high is None else f"{figure.low:.3g} to {figure.high:.3g}"


def _figure(figure: Figure) -> str:
    interval = _interval(figure)
    return f"{_value(figure)} ({interval})" if interval else _value(figure)


_TEMPLATES = Environment(autoescape=True, trim_blocks=True)
_TEMPLATES.filters |= {
    "shown": printable,
    "marked": _marked,
    "value": _value,
    "interval": _interval,
    "figure": _figure,
}
