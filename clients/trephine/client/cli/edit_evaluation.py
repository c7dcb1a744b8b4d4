from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from trephine.client.cli.arguments import DetachOption, path_option
from trephine.client.cli.edit_evaluation_text import show_evaluation
from trephine.client.cli.exit_codes import ExitCode
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation
from trephine.client.cli.output import Output
from trephine.client.cli.predictions import require_files, write_prediction
from trephine.client.cli.sets import ReplacementsOption, open_sets
from trephine.client.downloads import require_writable, write_file
from trephine.client.evaluation_sets import read_set
from trephine.client.types import EditEvaluation, EditVerdict, EvaluationRole, EvaluationSet

NameArgument = Annotated[str, typer.Argument(help="no-mary, or no-mary@2 for one version.")]

EVALUATE_EXAMPLES = examples(
    "trephine edits evaluate no-mary --target names.jsonl",
    "trephine edits evaluate warm@2 --target tone.jsonl --retain news.txt --retain quiz.jsonl \\",
    "    --prompt 'Answer warmly. ' --out out/warm.json",
)
_STATUS = {EditVerdict.SELECTIVE: ExitCode.PASS, EditVerdict.INCONCLUSIVE: ExitCode.INCONCLUSIVE}


def evaluate(
    context: typer.Context,
    name: NameArgument,
    target: Annotated[
        list[Path],
        path_option(
            "--target",
            "What it is to change: .txt (texts between blank lines), or .jsonl or .csv with text, "
            "or with prompt, answer and wrong. Repeatable.",
        ),
    ],
    retain: Annotated[
        list[Path] | None, path_option("--retain", "What it must leave alone. Unset: the built-in text.")
    ] = None,
    prompts: Annotated[
        list[str] | None, typer.Option("--prompt", help="A prompt that is to do the same. Repeatable.")
    ] = None,
    shots: Annotated[
        list[int] | None, typer.Option(help="Solved examples as a prompt. Repeatable; unset: 1, 2 and 4.")
    ] = None,
    always_prompt: Annotated[
        bool, typer.Option("--always-prompt", help="Try prompts for an edit that only removes, too.")
    ] = False,
    no_prompts: Annotated[bool, typer.Option("--no-prompts", help="Try no prompt.")] = False,
    controls: Annotated[
        int | None, typer.Option(help="Matched random sets; unset 99, fewer decide nothing.")
    ] = None,
    control_tokens: Annotated[
        int | None, typer.Option(help="Tokens of each target that run with every control; unset 256.")
    ] = None,
    retain_control_tokens: Annotated[
        int | None,
        typer.Option(help="The same of each retain set; unset as many, 0 none.", min=0),
    ] = None,
    wrong_layer_sets: Annotated[
        int | None, typer.Option(help="Matched sets of another layer; unset 19.", min=0)
    ] = None,
    max_retain_kl: Annotated[float | None, typer.Option(help="Nats per token; unset 0.1.")] = None,
    max_accuracy_drop: Annotated[float | None, typer.Option(help="Unset 0.05.")] = None,
    min_log_odds: Annotated[
        float | None, typer.Option(help="Smallest effect that matters; unset 0.5 nats.")
    ] = None,
    min_kl: Annotated[
        float | None, typer.Option(help="The same on texts; unset 0.01 nats per token.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many of every file.")] = None,
    seed: Annotated[int | None, typer.Option(help="Unset 0.")] = None,
    replacements: ReplacementsOption = None,
    out: Annotated[Path | None, path_option("--out", "A .json file with every figure.")] = None,
    predict: Annotated[
        bool, typer.Option("--predict", help="Say what it would take; measure nothing.")
    ] = False,
    detach: DetachOption = False,
) -> None:
    """Measure an edit: effect and damage beside matched random features, another layer and prompts.

    The result is kept with the edit. Exit status: 0 selective; 3 damaging, unspecific or ineffective; 4
    inconclusive.
    """
    given = invocation(context)
    require_files(out, predict=predict, detach=detach)
    if out is not None:
        require_writable(out)
    sets = _sets(target, retain or (), limit)
    options = {
        "prompts": tuple(prompts or ()),
        "shots": tuple(shots or ()),
        "always_prompt": always_prompt,
        "prompting": not no_prompts,
        "controls": controls,
        "tokens": control_tokens,
        "retain_tokens": retain_control_tokens,
        "wrong_layer_sets": wrong_layer_sets,
        "max_retain_kl": max_retain_kl,
        "max_accuracy_drop": max_accuracy_drop,
        "min_log_odds": min_log_odds,
        "min_kl": min_kl,
        "seed": seed,
    }
    with given.connect() as trephine:
        edit = trephine.edits.get(name)
        model = given.load(trephine, edit.made_for.model.removeprefix("models/"))
        open_sets(given, trephine, model, replacements)
        if predict:
            would = trephine.edits.predict_evaluation(edit, sets, **options)
            _show_prediction(given.output, would)
            write_prediction(given.output, out, would.to_json())
            return
        started = trephine.edits.start_evaluate(edit, sets, **options)
        found = given.complete(trephine, started, f"evaluate {edit.name}", detach=detach)
    if out is not None:
        write_file(out, found.to_json().encode())
    show_evaluation(given.output, found)
    if out is not None:
        given.output.note(f"wrote {out}")
    raise typer.Exit(_STATUS.get(found.verdict, ExitCode.FINDINGS))


def _show_prediction(output: Output, would: EditEvaluation) -> None:
    if output.json:
        output.document(would.to_json())
        return
    memory = f"{would.peak_extra_bytes / 1e6:,.0f} MB"
    output.facts([("would take", f"{would.seconds:,.0f} s"), ("memory", memory)])


def evaluations(context: typer.Context, name: NameArgument) -> None:
    """List an edit's evaluations, or those of one version, newest first."""
    given = invocation(context)
    with given.connect() as trephine:
        found = trephine.edits.evaluations(name)
    if given.output.json:
        listed = [json.loads(one.to_json()) for one in found]
        given.output.document(json.dumps({"evaluations": listed}, indent=2))
        return
    rows = [
        (one.name, one.edit.rpartition("@")[2], one.create_time, one.verdict.value.upper(), one.why)
        for one in found
    ]
    given.output.table(("NAME", "VERSION", "CREATED", "VERDICT", "WHY"), rows)


def show_evaluation_of(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="edits/.../evaluations/..., as `trephine edits show` lists it.")
    ],
    out: Annotated[Path | None, path_option("--out", "A .json file with every figure.")] = None,
) -> None:
    """Print a stored evaluation."""
    given = invocation(context)
    with given.connect() as trephine:
        found = trephine.edits.evaluation(name)
    if out is not None:
        write_file(out, found.to_json().encode())
    show_evaluation(given.output, found)


def _sets(target: list[Path], retain: list[Path] | tuple[()], limit: int | None) -> list[EvaluationSet]:
    return [
        read_set(path, role, limit=limit)
        for role, paths in ((EvaluationRole.TARGET, target), (EvaluationRole.RETAIN, retain))
        for path in paths
    ]
