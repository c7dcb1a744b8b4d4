"""Edits on the terminal."""

from __future__ import annotations

from trephine.client.cli.output import Output
from trephine.client.types import Edit, Intervention


def show_edit(output: Output, edit: Edit) -> None:
    """Print an edit with its changes."""
    if output.json:
        output.document(edit.to_json())
        return
    facts = [
        ("edit", f"{edit.name}, version {edit.version}"),
        ("digest", edit.content_hash),
        ("made for", f"{edit.made_for.model}, weights {edit.made_for.weight_hash}"),
        ("reason", edit.reason),
        ("author", f"{edit.author}, {edit.update_time or edit.create_time}"),
        ("evidence", ", ".join(edit.evidence)),
    ]
    facts += [("set", f"{one.name}, content {one.content_hash}") for one in edit.sets]
    facts += [("composed of", f"{one.edit} at strength {one.strength:g}") for one in edit.parts]
    output.facts(facts)
    output.table(("TARGET", "CHANGE", "LABEL"), [_row(one) for one in edit.interventions])


def _row(one: Intervention) -> tuple[str, ...]:
    value = "" if one.change.value is None else f" {one.change.value}"
    return str(one.target), f"{one.change.kind}{value}", one.label
