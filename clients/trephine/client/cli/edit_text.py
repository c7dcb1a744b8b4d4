"""Edits on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.client.cli.output import Output
from trephine.client.types import Edit, EditEvaluation, Intervention


def show_edit(output: Output, edit: Edit, evaluations: Sequence[EditEvaluation] = ()) -> None:
    """Print an edit with its changes and what was measured of this version."""
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
    if evaluations:
        output.line()
        rows = [(one.name, one.create_time, one.verdict.value.upper(), one.why) for one in evaluations]
        output.table(("EVALUATION", "CREATED", "VERDICT", "WHY"), rows)


def _row(one: Intervention) -> tuple[str, ...]:
    value = "" if one.change.value is None else f" {one.change.value}"
    value += "" if one.strength == 1 else f" at strength {one.strength:g}"
    return str(one.target), f"{one.change.kind}{value}", one.label
