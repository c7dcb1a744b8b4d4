from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trephine.client.cli.arguments import (
    DEFAULT_MODEL,
    DetachOption,
    ModelOption,
    path_option,
)
from trephine.client.cli.fit_curve import check_fit_file, show_curve, write_fit
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation
from trephine.client.cli.output import Output
from trephine.client.cli.predictions import require_files
from trephine.client.cli.sets import read_layers
from trephine.client.replacement_requests import corpus_media_type
from trephine.client.types import FitReport

FIT_EXAMPLES = examples(
    "trephine replacements fit my-set --tokens 200000 --layers 0,1",
    "trephine replacements fit my-set --corpus text.jsonl --end-to-end-tokens 50000 --detach",
    "trephine replacements fit my-set --predict",
)


def fit(
    context: typer.Context,
    set_id: Annotated[str, typer.Argument(metavar="SET", help="Name of the set to make; must not exist.")],
    model: ModelOption = DEFAULT_MODEL,
    corpus: Annotated[
        Path | None,
        path_option(
            "--corpus", "Text, JSONL with a text column, or a datasets folder; unset: the model's samples."
        ),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="transcoder (unset), skip-transcoder, sae, cross-layer-transcoder.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="Input site, as in resid-post; unset mlp-in.")] = None,
    layers: Annotated[str | None, typer.Option(help="As in 0,5,10-12; unset: all.")] = None,
    features: Annotated[int | None, typer.Option(help="Features of a layer; unset 2048.")] = None,
    k: Annotated[int | None, typer.Option("--k", help="Active features aimed at; unset 32.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Training tokens; unset 1,000,000.")] = None,
    context_tokens: Annotated[int | None, typer.Option(help="Unset 128.")] = None,
    batch_tokens: Annotated[int | None, typer.Option(help="Unset 2048.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate; unset 0.001.")] = None,
    dead_after_tokens: Annotated[
        int | None, typer.Option(help="When a silent feature joins the auxiliary loss; unset 200,000.")
    ] = None,
    warm_start: Annotated[
        bool | None, typer.Option(help="Start transcoders from the MLP's own neurons; unset yes.")
    ] = None,
    end_to_end_tokens: Annotated[
        int | None, typer.Option(help="Tokens of the phase through the whole model; unset 0, no phase.")
    ] = None,
    end_to_end_lr: Annotated[float | None, typer.Option(help="Its learning rate; unset 0.0005.")] = None,
    local_control: Annotated[
        bool | None, typer.Option(help="Train a copy on with the local loss, to compare; unset yes.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Unset 0.")] = None,
    out: Annotated[
        Path | None, path_option("--out", "File for the curves (*.csv) or the whole report (*.json).")
    ] = None,
    predict: Annotated[bool, typer.Option("--predict", help="Say what it would take; fit nothing.")] = False,
    detach: DetachOption = False,
) -> None:
    """Fit a replacement set offline and publish it in the replacement root.

    It goes on from its checkpoints after any crash, and appears under its name by one rename. Afterwards
    `trephine replacements load SET` loads it, and `trephine replacements fit-report` prints this again.
    """
    require_files(out, predict=predict, detach=detach)
    check_fit_file(out)
    given = invocation(context)
    recipe: dict[str, Any] = {
        "kind": kind,
        "site": site,
        "layers": read_layers(layers),
        "d_sae": features,
        "k": k,
        "tokens": tokens,
        "context_tokens": context_tokens,
        "batch_tokens": batch_tokens,
        "lr": lr,
        "dead_after_tokens": dead_after_tokens,
        "warm_start": warm_start,
        "end_to_end_tokens": end_to_end_tokens,
        "end_to_end_lr": end_to_end_lr,
        "local_control": local_control,
        "seed": seed,
    }
    if corpus is not None:
        corpus_media_type(corpus)  # a path that is not there is said before any work, predictions included
    with given.connect() as trephine:
        loaded = given.load(trephine, model)
        if predict:
            report = loaded.predict_fit(set_id, corpus=corpus, **recipe)
        else:
            started = loaded.start_fit_replacements(set_id, corpus=corpus, **recipe)
            report = given.complete(trephine, started, f"fit {set_id}", detach=detach)
    show_fit(given.output, report)
    if out is not None:
        given.output.note(f"wrote {write_fit(out, report)}")


def show_fit(output: Output, report: FitReport) -> None:
    """Print a fit, or what one would take."""
    if output.json:
        output.document(report.to_json())
        return
    if report.predicted is not None:
        output.facts(
            [
                ("would take", f"{report.predicted.seconds:,.0f} s"),
                ("memory", f"{report.predicted.memory_bytes / 1e6:,.0f} MB"),
                ("disk", f"{report.predicted.disk_bytes / 1e6:,.0f} MB"),
            ]
        )
        return
    rows = [
        (str(one.layer), f"{one.fvu:.3f}", f"{one.l0:.1f}", f"{one.dead_share:.1%}") for one in report.layers
    ]
    output.table(("LAYER", "FVU", "L0", "DEAD"), rows)
    show_curve(output, report.curve, dead_after_tokens=report.recipe.dead_after_tokens)
    output.facts(_facts(report))


def _facts(report: FitReport) -> list[tuple[str, str]]:
    facts = [
        ("set", report.replacement_set),
        ("model", f"{report.version.model}, weights {report.version.weight_hash}"),
        ("corpus", f"{report.corpus}, {report.tokens:,} tokens"),
        (
            "took",
            f"{report.seconds:,.1f} s, {report.peak_bytes / 1e6:,.0f} MB, resumed {report.resumed} times",
        ),
        ("fit", report.name),
    ]
    gap = report.gap
    if gap is not None:
        whole = _after(gap.ce_end_to_end, gap.seconds_end_to_end)
        control = _after(gap.ce_local_control, gap.seconds_local_control)
        facts += [
            ("cross-entropy", f"{gap.ce_plain:.4f} plain, {gap.ce_local:.4f} spliced after the local phase"),
            ("end to end", f"{whole} spliced; local control {control}"),
            ("gap closed", f"{gap.closed:.1%}, L0 {gap.l0_change:+.1%} against the reference"),
        ]
    return facts


def _after(cross_entropy: float | None, seconds: float | None) -> str:
    """What a phase reached, and its time."""
    if cross_entropy is None:
        return "none"
    return f"{cross_entropy:.4f}" if seconds is None else f"{cross_entropy:.4f} after {seconds:,.1f} s"
