"""`trephine exports list|show`: folders that a server has published."""

from __future__ import annotations

from typing import Annotated

import typer

from trephine.client.cli.certificate_text import verdict_word
from trephine.client.cli.export import show_export
from trephine.client.cli.help_text import examples
from trephine.client.cli.invocation import invocation
from trephine.client.cli.removal import word
from trephine.client.decoding import message_json
from trephine.client.types import Export, SignatureKind
from trephine.v1 import edit_service_pb2

app = typer.Typer(no_args_is_help=True, help="Look at what was exported.")


@app.command("list", epilog=examples("trephine exports list", "trephine exports list --edit no-mary"))
def list_exports(
    context: typer.Context,
    edit: Annotated[
        str | None, typer.Option(help="Only of this edit; NAME@VERSION: of what does as that version does.")
    ] = None,
) -> None:
    """List published exports, newest first."""
    given = invocation(context)
    with given.connect() as trephine:
        found = trephine.exports.list(edit=edit)
    if given.output.json:
        messages = [one.message for one in found]
        given.output.document(message_json(edit_service_pb2.ListExportsResponse(exports=messages)))  # type: ignore[arg-type]
        return
    columns = ("NAME", "PUBLISHED", "EDIT", "VERDICT", "GATES", "BEHAVIOUR", "SIGNED")
    given.output.table(columns, [_row(one) for one in found])


@app.command(epilog=examples("trephine exports show quiet-1f2e3d4c5b6a"))
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="exports/NAME, or NAME, as `trephine exports list` shows it.")],
) -> None:
    """Print a published export with the figures of its certificate: all that was measured, gates, attacks."""
    given = invocation(context)
    with given.connect() as trephine:
        found = trephine.exports.get(name)
    show_export(given.output, found)


def _row(export: Export) -> tuple[str, ...]:
    certificate = export.certificate
    held = sum(result.passed for result in certificate.gates)
    return (
        export.name,
        export.create_time,
        certificate.edit,
        verdict_word(certificate.verdict, ""),
        f"{held} of {len(certificate.gates)} hold",
        word(certificate),
        _signed(export),
    )


def _signed(export: Export) -> str:
    by = export.signed_by
    if by is None or by.kind is not SignatureKind.SIGSTORE:
        return "by key" if export.signed else "no"
    return f"by {by.identity}"
