from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from trephine.client.cli.arguments import DEFAULT_MODEL, ModelOption, read_edits
from trephine.client.cli.edit_text import change_of, show_edit, target_of
from trephine.client.cli.exit_codes import ExitCode
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation
from trephine.client.cli.output import Output
from trephine.client.cli.sets import ReplacementsOption, open_sets
from trephine.client.decoding import message_json
from trephine.client.errors import InvalidRequestError
from trephine.client.types import EditConflict, EditDiff, Intervention, LiveEdits
from trephine.v1 import edit_service_pb2

PartsArgument = Annotated[
    list[str], typer.Argument(help="Edits in the order in which they act: quiet, quiet@2, or quiet=0.5.")
]

COMPOSE_EXAMPLES = examples(
    "trephine edits compose quiet-and-warm quiet warm@2=0.5",
    "trephine edits compose any quiet warm --check",
)
SERVE_EXAMPLES = examples(
    "trephine edits serve quiet warm=0.5 --model smollm2", "trephine edits serve --none --model smollm2"
)


def compose(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Lower case letters, digits and dashes.")],
    parts: PartsArgument,
    reason: Annotated[str | None, typer.Option(help="Why; unset: of what it is composed.")] = None,
    author: Annotated[str | None, typer.Option(help="Who; unset: you.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only list conflicts; store nothing.")] = False,
) -> None:
    """Store one edit that does what several do, each at its strength. Conflicts are refused."""
    given = invocation(context)
    with given.connect() as trephine:
        if check:
            conflicts = trephine.edits.conflicts(read_edits(parts))
            show_conflicts(given.output, conflicts)
            raise typer.Exit(ExitCode.FINDINGS if conflicts else ExitCode.PASS)
        edit = trephine.edits.compose(name, read_edits(parts), reason=reason, author=author)
    show_edit(given.output, edit)


def diff(
    context: typer.Context,
    first: Annotated[str, typer.Argument(help="quiet, or quiet@1.")],
    second: Annotated[str, typer.Argument(help="warm, or quiet@2.")],
) -> None:
    """Show what differs between two edits, or two versions of one."""
    given = invocation(context)
    with given.connect() as trephine:
        show_diff(given.output, trephine.edits.diff(first, second))


def serve(
    context: typer.Context,
    edits: Annotated[
        list[str] | None,
        typer.Argument(help="quiet, quiet@2 or quiet=0.5; by name: always the latest."),
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    replacements: ReplacementsOption = None,
    none: Annotated[bool, typer.Option("--none", help="Serve none.")] = False,
) -> None:
    """Serve edits to every request that names none; without arguments, show which are served.

    Discovery, audits and measurements always see the model itself.
    """
    given = invocation(context)
    if edits and none:
        raise InvalidRequestError("name edits, or say --none", field="none")
    with given.connect() as trephine:
        loaded = given.load(trephine, model)
        open_sets(given, trephine, loaded, replacements)
        setting = loaded.set_live_edits(read_edits(edits or ())) if edits or none else loaded.live_edits()
    show_live(given.output, setting)


def show_conflicts(output: Output, conflicts: Sequence[EditConflict]) -> None:
    """Print what stands in the way of a composition."""
    if output.json:
        listed = [one.message for one in conflicts]
        output.document(message_json(edit_service_pb2.ComposeEditsResponse(conflicts=listed)))  # type: ignore[arg-type]
        return
    if not conflicts:
        output.note("no conflict")
        return
    rows = [(one.first, one.second, one.target, one.positions, one.why) for one in conflicts]
    output.table(("EDIT", "AND", "TARGET", "WHERE", "WHY"), rows)


def show_live(output: Output, setting: LiveEdits) -> None:
    """Print what a model serves by default."""
    if output.json:
        output.document(setting.to_json())
        return
    rows = [(one.edit, f"{1.0 if one.strength is None else one.strength:g}") for one in setting.edits]
    if rows:
        output.table(("EDIT", "STRENGTH"), rows)
    output.note(f"{setting.model} serves {'these' if rows else 'no edit'} to requests that name none")


def show_diff(output: Output, found: EditDiff) -> None:
    """Print what differs."""
    if output.json:
        output.document(found.to_json())
        return
    rows = [
        (
            one.kind.value,
            _target(one.before or one.after),
            _change(one.before),
            _change(one.after),
            ", ".join(one.fields),
        )
        for one in found.changes
    ]
    if rows:
        output.table(("CHANGE", "TARGET", "BEFORE", "AFTER", "DIFFERS IN"), rows)
    facts = [
        ("from, to", f"{found.first}, {found.second}"),
        ("content", "the same" if found.same_content else "differs"),
        ("unchanged", f"{found.unchanged} interventions{', in another order' if found.reordered else ''}"),
    ]
    facts += [("also differs in", ", ".join(found.fields))] if found.fields else []
    output.facts(facts)


def _target(one: Intervention | None) -> str:
    return "" if one is None else target_of(one)


def _change(one: Intervention | None) -> str:
    return "" if one is None else change_of(one)
