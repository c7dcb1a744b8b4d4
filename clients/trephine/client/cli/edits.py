from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from trephine.client.cli.ablate import show_ablation
from trephine.client.cli.arguments import (
    DEFAULT_MODEL,
    ChangeOption,
    DetachOption,
    FeatureOption,
    ModelOption,
    interventions_from,
)
from trephine.client.cli.edit_composition import COMPOSE_EXAMPLES, SERVE_EXAMPLES, compose, diff, serve
from trephine.client.cli.edit_evaluation import (
    EVALUATE_EXAMPLES,
    evaluate,
    evaluations,
    show_evaluation_of,
)
from trephine.client.cli.edit_history import (
    EVIDENCE_HELP,
    REVERT_EXAMPLES,
    UPDATE_EXAMPLES,
    delete,
    revert,
    update,
    versions,
)
from trephine.client.cli.edit_text import show_edit
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import Invocation, invocation
from trephine.client.cli.sets import ReplacementsOption, open_sets
from trephine.client.decoding import message_json
from trephine.client.errors import InvalidRequestError
from trephine.client.selection import EditDraft
from trephine.client.terminal import printable
from trephine.client.trephine import Trephine
from trephine.client.types import CurvePoint, Intervention
from trephine.v1 import edit_service_pb2

app = typer.Typer(no_args_is_help=True, help="Store edits, change them, go back, forget them.")

app.command(epilog=UPDATE_EXAMPLES)(update)
app.command(epilog=REVERT_EXAMPLES)(revert)
app.command()(versions)
app.command()(delete)
app.command(epilog=COMPOSE_EXAMPLES)(compose)
app.command()(diff)
app.command(epilog=SERVE_EXAMPLES)(serve)
app.command(epilog=EVALUATE_EXAMPLES)(evaluate)
app.command()(evaluations)
app.command("evaluation")(show_evaluation_of)

__all__ = ["app", "curve_rows", "show_ablation", "show_edit"]

NameArgument = Annotated[str, typer.Argument(help="no-mary, or no-mary@2 for one version.")]


@app.command(
    epilog=examples(
        "trephine edits create no-mary --circuit circuits/3f9c",
        "trephine edits create quiet --feature 20:345 --feature 25:1027 --scale 0.5",
        "trephine edits create warm --change 20:345+=4 --reason 'a warmer tone'",
    )
)
def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Lower case letters, digits and dashes.")],
    features: FeatureOption = None,
    circuit: Annotated[
        str | None, typer.Option(help="Take the smallest set of neurons of this circuit that could ship.")
    ] = None,
    scale: Annotated[float | None, typer.Option(help="Multiply instead of removing.")] = None,
    changes: ChangeOption = None,
    model: ModelOption = DEFAULT_MODEL,
    reason: Annotated[str | None, typer.Option(help="Why it exists.")] = None,
    author: Annotated[str | None, typer.Option(help="Who made it; unset: you.")] = None,
    evidence: Annotated[list[str] | None, typer.Option(help=EVIDENCE_HELP)] = None,
    replacements: ReplacementsOption = None,
    detach: DetachOption = False,
) -> None:
    """Store an edit: features to remove, scale or change everywhere, under a name.

    With --circuit they are searched for first. --detach starts that search alone and stores nothing.
    """
    given = invocation(context)
    named = interventions_from(features, scale if circuit is None else None, changes)
    _require_one_source(named, circuit, detach=detach)
    with given.connect() as trephine:
        loaded = given.load(trephine, model)
        open_sets(given, trephine, loaded, replacements)
        interventions = (
            named if circuit is None else _shippable(given, trephine, circuit, scale, detach=detach)
        )
        edit = trephine.edits.create(
            name,
            interventions,
            model=None if isinstance(interventions, EditDraft) else loaded.name,
            reason=reason,
            author=author,
            evidence=evidence,
        )
    show_edit(given.output, edit)


@app.command("list")
def list_edits(context: typer.Context) -> None:
    """List stored edits, newest first."""
    given = invocation(context)
    with given.connect() as trephine:
        edits = trephine.edits.list()
    if given.output.json:
        messages = [edit.message for edit in edits]
        given.output.document(message_json(edit_service_pb2.ListEditsResponse(edits=messages)))  # type: ignore[arg-type]
        return
    rows = [
        (one.reference, one.create_time, one.made_for.model, str(len(one.interventions)), one.reason)
        for one in edits
    ]
    given.output.table(("LATEST VERSION", "CREATED", "MODEL", "CHANGES", "REASON"), rows)


@app.command()
def show(context: typer.Context, name: NameArgument) -> None:
    """Print an edit, or one version of it as NAME@VERSION, with what was measured of it."""
    given = invocation(context)
    with given.connect() as trephine:
        edit = trephine.edits.get(name)
        evaluations = () if given.output.json else trephine.edits.evaluations(edit)
    show_edit(given.output, edit, evaluations)


def curve_rows(curve: Sequence[CurvePoint], chosen: int) -> list[tuple[str, ...]]:
    """An effect-against-damage curve as rows of a table; the chosen one is marked."""
    return [
        (
            f"{point.count}{' <' if point.count == chosen else ''}",
            f"{point.value:+.3f}",
            f"{point.drop:.1%}",
            f"{point.retain_kl:.4f}",
            f"{point.retain_kl_after_first:.4f}",
        )
        for point in curve
    ]


def _require_one_source(named: list[Intervention], circuit: str | None, *, detach: bool) -> None:
    if bool(named) == bool(circuit):
        raise InvalidRequestError(
            "say what to change: --feature LAYER:INDEX, --change LAYER:INDEX+=8 or --circuit NAME",
            field="feature",
        )
    if detach and not circuit:
        raise InvalidRequestError(
            "--detach goes with --circuit: neurons that are named are stored at once", field="detach"
        )


def _shippable(
    given: Invocation, trephine: Trephine, circuit: str, scale: float | None, *, detach: bool
) -> EditDraft:
    started = trephine.circuits.get(circuit).start_shippable()
    selection = given.complete(trephine, started, "propose", detach=detach)
    given.output.note(printable(selection.why))
    return selection.ablate() if scale is None else selection.scale(scale)
