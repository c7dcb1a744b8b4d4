from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trephine.client.cli.arguments import path_option
from trephine.client.cli.evaluate import show_evaluation
from trephine.client.cli.fit import show_fit
from trephine.client.cli.fit_curve import check_fit_file, write_fit
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation

EVALUATION_EXAMPLES = examples(
    "trephine replacements evaluation evaluations/3f2a --out out/evaluation",
)
REPORT_EXAMPLES = examples(
    "trephine replacements fit-report fits/3f2a",
    "trephine replacements fit-report fits/3f2a --out curves.csv",
)


def evaluation(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="evaluations/..., as `trephine operations show` names it.")],
    out: Annotated[
        Path | None,
        path_option("--out", "Folder for evaluation.html, .json and .csv, or one file of these kinds."),
    ] = None,
) -> None:
    """Print a finished evaluation, as `evaluate` does; for those that were started with --detach."""
    given = invocation(context)
    with given.connect() as trephine:
        found = trephine.replacements.evaluation(name)
        paths = found.save(out) if out is not None else ()
    show_evaluation(given.output, found.info)
    for path in paths:
        given.output.note(f"wrote {path}")


def fit_report(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="fits/..., as `trephine operations show` names it.")],
    out: Annotated[
        Path | None, path_option("--out", "File for the curves (*.csv) or the whole report (*.json).")
    ] = None,
) -> None:
    """Print a finished fit with its curves, as `fit` does; for those that were started with --detach."""
    check_fit_file(out)
    given = invocation(context)
    with given.connect() as trephine:
        report = trephine.replacements.fit(name)
    show_fit(given.output, report)
    if out is not None:
        given.output.note(f"wrote {write_fit(out, report)}")
