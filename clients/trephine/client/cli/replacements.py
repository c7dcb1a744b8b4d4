from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trephine.client.cli.arguments import DEFAULT_MODEL, DetachOption, ModelOption, path_argument
from trephine.client.cli.evaluate import EVALUATE_EXAMPLES, evaluate
from trephine.client.cli.finished import EVALUATION_EXAMPLES, REPORT_EXAMPLES, evaluation, fit_report
from trephine.client.cli.fit import FIT_EXAMPLES, fit
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation
from trephine.client.cli.output import Output
from trephine.client.cli.service import make_folder
from trephine.client.cli.sets import (
    AcceptDegradedOption,
    BudgetOption,
    FormatOption,
    SetArgument,
    UnverifiedOption,
    read_bytes,
)
from trephine.client.decoding import message_json
from trephine.client.types import LayerAdmission, ReplacementLayer, ReplacementSetInfo
from trephine.v1 import replacement_service_pb2

app = typer.Typer(no_args_is_help=True, help="Load, measure and fit replacement sets: SAEs, transcoders.")
app.command(epilog=EVALUATE_EXAMPLES)(evaluate)
app.command(epilog=FIT_EXAMPLES)(fit)
app.command(epilog=EVALUATION_EXAMPLES)(evaluation)
app.command("fit-report", epilog=REPORT_EXAMPLES)(fit_report)

LoadedArgument = Annotated[str, typer.Argument(metavar="SET", help="Name of a set beside the model.")]


@app.command("list")
def list_sets(context: typer.Context) -> None:
    """List the sets in the server's replacement roots, and those that are loaded."""
    given = invocation(context)
    with given.connect() as trephine:
        sets = trephine.replacements.list()
    if given.output.json:
        messages = [one.message for one in sets]
        response = replacement_service_pb2.ListReplacementSetsResponse(replacement_sets=messages)  # type: ignore[arg-type]
        given.output.document(message_json(response))
        return
    given.output.table(("SET", "STATE", "MODEL", "LAYERS", "KIND", "NOTE"), [_row(one) for one in sets])


@app.command(
    epilog=examples(
        "trephine replacements load smollm2-135m-tc",
        "trephine replacements load ./my-set --as mine --memory-budget 200MB",
    )
)
def load(
    context: typer.Context,
    name: SetArgument,
    model: ModelOption = DEFAULT_MODEL,
    alias: Annotated[
        str | None, typer.Option("--as", help="Name that its features are addressed by.")
    ] = None,
    format: FormatOption = None,
    memory_budget: BudgetOption = None,
    accept_degraded: AcceptDegradedOption = False,
    unverified_format: UnverifiedOption = False,
    detach: DetachOption = False,
) -> None:
    """Load a set beside a model and check that it is what it claims.

    It stays loaded as long as the server runs, and comes back with the model after a crash. A set whose
    figures on the probe text are not what it claims is refused, with these figures.
    """
    given = invocation(context)
    with given.connect() as trephine:
        loaded = given.load(trephine, model)
        started = loaded.start_load_replacements(
            name,
            name=alias,
            format=format,
            memory_budget_bytes=read_bytes(memory_budget),
            accept_degraded=accept_degraded,
            allow_unverified=unverified_format,
        )
        found = given.complete(trephine, started, f"load {name}", detach=detach)
    show_set(given.output, found.info)


@app.command()
def show(context: typer.Context, name: LoadedArgument, model: ModelOption = DEFAULT_MODEL) -> None:
    """Say what a loaded set is, how its admission went, and where its weights are."""
    given = invocation(context)
    with given.connect() as trephine:
        found = given.load(trephine, model).replacement(name)
    show_set(given.output, found.info)


@app.command()
def unload(context: typer.Context, name: LoadedArgument, model: ModelOption = DEFAULT_MODEL) -> None:
    """Forget a loaded set; its memory is free again."""
    given = invocation(context)
    with given.connect() as trephine:
        trephine.model(model).replacement(name).unload()
    given.output.note(f"unloaded {name}")


@app.command(
    "import",
    epilog=examples(
        "trephine replacements import gemma-scope-2b-pt-res-canonical layer_20/width_16k/canonical ./layer-20"
    ),
)
def import_release(
    context: typer.Context,
    release: Annotated[str, typer.Argument(help="A release of SAELens' registry.")],
    sae_id: Annotated[str, typer.Argument(help="One of its dictionaries.")],
    folder: Annotated[Path, path_argument("DIR", "Folder to make; must not exist.", metavar="DIR")],
) -> None:
    """Download a published dictionary once and store it so that it loads offline. Needs SAELens here."""
    words = ("import-release", release, sae_id, str(folder.expanduser().absolute()))
    raise typer.Exit(make_folder(invocation(context).output, *words))


def show_set(output: Output, info: ReplacementSetInfo) -> None:
    """Print a set with its admission."""
    if output.json:
        output.document(info.to_json())
        return
    output.facts(_facts(info))
    admitted = {layer.layer: layer for layer in info.admission.layers}
    output.table(
        (
            *("LAYER", "KIND", "SUPPORT", "READS", "FEATURES", "L0", "CLAIMED", "FVU", "L0 AT 0", "FVU AT 0"),
            *("DEAD", "HOOK", "ADMITTED"),
        ),
        [_layer_row(layer, admitted.get(layer.layer)) for layer in info.layers],
    )


def _facts(info: ReplacementSetInfo) -> list[tuple[str, str]]:
    where, verdict = info.residency, "passed" if info.admission.passed else "FAILED"
    facts = [
        ("set", info.name),
        ("state", f"{info.state.value}: {info.why}" if info.why else info.state.value),
        ("format", info.format.value),
        ("content", info.content_hash),
        ("model", f"{info.version.model}, weights {info.version.weight_hash}"),
        ("admission", f"{verdict}: {info.admission.why}"),
        ("probe text", f"{info.admission.text}, {info.admission.tokens} tokens, position 0 left out"),
        ("begins with", info.admission.begins_with or "nothing"),
        ("memory", f"{_mb(where.resident_bytes)} of {_mb(where.total_bytes)} resident, "
                   f"at most {_mb(where.peak_bytes)}, budget {_mb(where.budget_bytes)}"),
    ]  # fmt: skip
    return [*facts, ("degraded", "yes: every result says so")] if info.degraded else facts


def _layer_row(layer: ReplacementLayer, admitted: LayerAdmission | None) -> tuple[str, ...]:
    what = (
        str(layer.layer),
        layer.kind.value,
        layer.support.value,
        f"{layer.site_in.kind.value} {layer.site_in.layer}",
        str(layer.d_sae),
    )
    claimed = "" if layer.claimed_l0 is None else f"{layer.claimed_l0:.1f}"
    if admitted is None:
        return (*what, "", claimed, *[""] * 6)
    verdict = "yes" if admitted.passed else f"NO: {admitted.why}"
    return (
        *what,
        f"{admitted.l0:.1f}",
        claimed,
        f"{admitted.fvu:.3f}",
        f"{admitted.l0_first:.1f}",
        f"{admitted.fvu_first:.3f}",
        f"{admitted.dead_share:.1%}",
        admitted.convention,
        verdict,
    )


def _row(info: ReplacementSetInfo) -> tuple[str, ...]:
    kinds = ", ".join(sorted({layer.kind.value for layer in info.layers}))
    note = info.why or ("degraded" if info.degraded else "")
    model = info.version.model.removeprefix("models/")
    return info.set_id, info.state.value, model, str(len(info.layers) or ""), kinds, note


def _mb(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
