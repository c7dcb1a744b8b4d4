from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from trephine.client.audit_reports import FILE_NAMES
from trephine.client.baseline import Baseline, read_baseline
from trephine.client.cli.arguments import (
    DEFAULT_MODEL,
    DetachOption,
    ModelOption,
    path_option,
    require_waiting,
)
from trephine.client.cli.exit_codes import ExitCode
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation
from trephine.client.cli.output import Output
from trephine.client.decoding import message_json
from trephine.client.downloads import require_writable
from trephine.client.errors import AuditorNotFoundError, InvalidRequestError
from trephine.client.terminal import printable
from trephine.client.trephine import Trephine
from trephine.client.types import AuditReport, Figure, Severity, Verdict

_SEVERITIES = ", ".join(severity.value for severity in list(Severity)[1:])


AUDIT_EXAMPLES = examples(
    "trephine audit --model smollm2 --auditor unfaithful_reasoning --fail-on medium --out out/audit",
)


def audit(
    context: typer.Context,
    auditors: Annotated[list[str], typer.Option("--auditor", help="Which auditor to run. May be repeated.")],
    out: Annotated[
        Path | None,
        path_option(
            "--out", "Folder for the reports: JSON, SARIF, JUnit XML, HTML. Needed without --detach."
        ),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    fail_on: Annotated[str, typer.Option(help=f"Smallest severity that fails: {_SEVERITIES}.")] = "low",
    baseline: Annotated[
        Path | None, path_option("--baseline", "JSON file of findings that were accepted, with a date each.")
    ] = None,
    items: Annotated[int | None, typer.Option(help="Size of the item set; unset 24.")] = None,
    seed: Annotated[int | None, typer.Option(help="Unset 0.")] = None,
    time_limit: Annotated[float | None, typer.Option(help="Seconds for each auditor; unset 600.")] = None,
    parameters: Annotated[
        list[str] | None, typer.Option("--parameter", help="NAME=VALUE, auditor-specific.")
    ] = None,
    detach: DetachOption = False,
) -> None:
    """Ask questions of a model, in CI or by hand, and leave reports that machines read.

    Exit status: 0 every audit passed or does not apply to this model; 3 a finding at or above --fail-on
    that --baseline does not accept; 4 no such finding, and an audit was inconclusive or left a rule
    undecided (never a pass); 5 the baseline file is invalid; 2 wrong arguments; 1 an auditor or we broke.
    With --detach 0 says only that every audit was started.
    """
    given = invocation(context)
    threshold = _severity(fail_on)
    accepted = read_baseline(baseline) if baseline is not None else Baseline()
    settings = dict(_parameter(text) for text in parameters or ())
    require_waiting(out, detach=detach)
    if out is None and not detach:
        raise InvalidRequestError("say where the reports go: --out FOLDER, or --detach", field="out")
    if out is not None:
        folders = [_folder(out, auditors, one) for one in auditors]
        require_writable(*(folder / name for folder in folders for name in FILE_NAMES.values()))
    reports: list[AuditReport] = []
    with given.connect() as trephine:
        start = partial(
            trephine.audits.start,
            given.load(trephine, model).name,
            seed=seed,
            items=items,
            time_limit_seconds=time_limit,
            parameters=settings,
        )
        if len(auditors) > 1:
            _require_known(trephine, auditors)
        if out is None:
            given.leave(trephine, map(start, auditors))
        for auditor in auditors:
            report = given.complete(trephine, start(auditor), f"audit {auditor}")
            _show(given.output, report, trephine.audits.save(report, _folder(out, auditors, auditor)))
            reports.append(report)
    raise typer.Exit(status_of(reports, threshold, accepted))


def status_of(reports: Sequence[AuditReport], threshold: Severity, accepted: Baseline) -> ExitCode:
    """The exit status of audits: decided once, from the reports, whatever was rendered.

    A finding that counts outweighs a doubt; a doubt is never a pass, whatever was accepted beside it. An
    audit that does not apply found nothing and doubts nothing.
    """
    new = [one for report in reports for one in report.findings if not accepted.covers(one)]
    if any(one.severity.rank >= threshold.rank for one in new):
        return ExitCode.FINDINGS
    sure = {Verdict.PASS, Verdict.NOT_APPLICABLE, Verdict.FAIL}
    if any(report.verdict not in sure or report.undecided for report in reports):
        return ExitCode.INCONCLUSIVE
    if any(report.verdict is Verdict.FAIL and not report.findings for report in reports):
        return ExitCode.FINDINGS  # a failure that names nothing is a failure all the same
    return ExitCode.PASS


def show_report(output: Output, report: AuditReport) -> None:
    """Print a report's outcome, figures and findings."""
    output.facts(
        [
            ("auditor", f"{report.auditor.name} {report.auditor.version}: {report.auditor.question}"),
            ("verdict", f"{report.verdict.value.upper()}: {report.why}"),
            ("undecided", ", ".join(report.undecided)),
            ("would decide", report.would_decide),
            ("model", f"{report.version.model}, weights {report.version.weight_hash}"),
            ("load", f"{report.items} items, seed {report.seed}, {report.seconds:.1f} s"),
            ("blind spot", report.auditor.blind_spot),
        ]
    )
    output.table(("FIGURE", "VALUE", "INTERVAL"), [figure_row(figure) for figure in report.figures])
    for one in report.findings:
        output.line(f"{one.severity.value.upper()} {printable(one.rule)}: p = {one.p_value:.3g}")


def figure_row(figure: Figure) -> tuple[str, str, str]:
    """A figure as a row of a table."""
    interval = "" if figure.low is None or figure.high is None else f"{figure.low:.3g} to {figure.high:.3g}"
    return figure.name, f"{figure.value:.4g} {figure.unit}".rstrip(), interval


def _require_known(trephine: Trephine, auditors: Sequence[str]) -> None:
    """Refuse a name that nobody has before the first of several audits takes its minutes.

    Raises:
        AuditorNotFoundError: If one is not installed on the server.
    """
    installed = [one.name for one in trephine.auditors.list()]
    for name in auditors:
        if name not in installed:
            raise AuditorNotFoundError(
                f"there is no auditor {name!r}; installed: {', '.join(installed)}", field="auditor"
            )


def _folder(out: Path, auditors: Sequence[str], auditor: str) -> Path:
    """Where an auditor's reports go: of several each has a folder of its own."""
    return out if len(auditors) == 1 else out / auditor


def _show(output: Output, report: AuditReport, paths: Sequence[Path]) -> None:
    if output.json:
        output.document(message_json(report.message))
    else:
        show_report(output, report)
    for path in paths:
        output.note(f"wrote {path}")


def _severity(text: str) -> Severity:
    try:
        severity = Severity(text.lower())
    except ValueError:
        severity = Severity.UNSPECIFIED
    if severity is Severity.UNSPECIFIED:
        raise InvalidRequestError(f"--fail-on is one of {_SEVERITIES}, not {text!r}", field="fail_on")
    return severity


def _parameter(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidRequestError(f"--parameter is NAME=VALUE, not {text!r}", field="parameters")
    return name, value
