from __future__ import annotations

from typing import Annotated

import typer

from trephine.client.cli.arguments import ChangeOption, FeatureOption, interventions_from
from trephine.client.cli.edit_text import show_edit
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation
from trephine.client.decoding import message_json
from trephine.client.terminal import printable
from trephine.v1 import edit_service_pb2

NameArgument = Annotated[str, typer.Argument(help="no-mary, or edits/no-mary.")]
ReasonOption = Annotated[str | None, typer.Option(help="Why.")]
AuthorOption = Annotated[str | None, typer.Option(help="Who; unset: you.")]
ExpectedOption = Annotated[
    int | None, typer.Option("--expect-version", help="Refuse if the latest version is another one.")
]

EVIDENCE_HELP = "A circuit, an audit, a finding (audits/ID#FINGERPRINT), NAME@sha256:HEX of data. Repeatable."

UPDATE_EXAMPLES = examples(
    "trephine edits update quiet --feature 20:345 --scale 0.25 --reason 'half was too much'",
    "trephine edits update quiet --evidence audits/3f9c --expect-version 2",
)
REVERT_EXAMPLES = examples("trephine edits revert quiet 1")


def update(
    context: typer.Context,
    name: NameArgument,
    features: FeatureOption = None,
    scale: Annotated[float | None, typer.Option(help="Multiply instead of removing.")] = None,
    changes: ChangeOption = None,
    reason: ReasonOption = None,
    author: AuthorOption = None,
    evidence: Annotated[
        list[str] | None,
        typer.Option(help=f"{EVIDENCE_HELP} Instead of those there are."),
    ] = None,
    expected: ExpectedOption = None,
) -> None:
    """Store another version of an edit. Features and changes replace those there are; earlier versions stay.

    What changes nothing stores nothing.
    """
    given = invocation(context)
    interventions = interventions_from(features, scale, changes)
    with given.connect() as trephine:
        edit = trephine.edits.update(
            name,
            interventions or None,
            reason=reason,
            author=author,
            evidence=evidence,
            expected_version=expected,
        )
    show_edit(given.output, edit)


def revert(
    context: typer.Context,
    name: NameArgument,
    version: Annotated[int, typer.Argument(help="The version that comes back.")],
    reason: ReasonOption = None,
    author: AuthorOption = None,
    expected: ExpectedOption = None,
) -> None:
    """Store another version that does what an earlier one did."""
    given = invocation(context)
    with given.connect() as trephine:
        edit = trephine.edits.revert(name, version, reason=reason, author=author, expected_version=expected)
    show_edit(given.output, edit)


def versions(context: typer.Context, name: NameArgument) -> None:
    """List every version of an edit, newest first."""
    given = invocation(context)
    with given.connect() as trephine:
        found = trephine.edits.versions(name)
    if given.output.json:
        listed = [one.message for one in found]
        given.output.document(message_json(edit_service_pb2.ListEditVersionsResponse(edits=listed)))  # type: ignore[arg-type]
        return
    rows = [
        (str(one.version), one.update_time, one.content_hash[:12], one.author, one.reason) for one in found
    ]
    given.output.table(("VERSION", "MADE", "CONTENT", "AUTHOR", "REASON"), rows)


def delete(
    context: typer.Context,
    name: NameArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Also if exports, served models or other edits rest on it.")
    ] = False,
) -> None:
    """Forget an edit with all its versions. Folders exported from it stay."""
    given = invocation(context)
    with given.connect() as trephine:
        trephine.edits.delete(name, force=force)
    if given.output.json:
        given.output.document("{}")  # google.protobuf.Empty
    given.output.note(f"deleted {printable(name)}")
