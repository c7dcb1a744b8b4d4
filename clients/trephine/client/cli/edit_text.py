"""Edits on the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.client.cli.output import Output
from trephine.client.terminal import printable
from trephine.client.types import Direction, Edit, EditEvaluation, Intervention, Site


def show_edit(output: Output, edit: Edit, evaluations: Sequence[EditEvaluation] = ()) -> None:
    """Print an edit with its changes and what was measured of this version."""
    for warning in edit.evidence_warnings:
        output.note(f"warning: {printable(warning)}")
    if output.json:
        output.document(edit.to_json())
        return
    facts = [
        ("edit", f"{edit.name}, version {edit.version}"),
        ("digest", edit.content_hash),
        ("made for", f"{edit.made_for.model}, weights {edit.made_for.weight_hash}"),
        ("reason", edit.reason),
        ("author", f"{edit.author}, {edit.update_time or edit.create_time}"),
    ]
    facts += [("evidence", name) for name in edit.evidence]
    facts += [("set", f"{one.name}, content {one.content_hash}") for one in edit.sets]
    facts += [("composed of", f"{one.edit} at strength {one.strength:g}") for one in edit.parts]
    output.facts(facts)
    rows = [(target_of(one), change_of(one), one.label) for one in edit.interventions]
    output.table(("TARGET", "CHANGE", "LABEL"), rows)
    if evaluations:
        output.line()
        output.table(
            ("EVALUATION", "CREATED", "VERDICT", "WHY"),
            [(one.name, one.create_time, one.verdict.value.upper(), one.why) for one in evaluations],
        )


def target_of(one: Intervention) -> str:
    """What an intervention changes; the numbers of a direction are left out."""
    if isinstance(one.target, Direction):
        return f"direction at {one.target.site.kind.value} {one.target.site.layer}"
    if isinstance(one.target, Site):
        return f"{one.target.kind.value} {one.target.layer}"
    return str(one.target)


def change_of(one: Intervention) -> str:
    """What it does, and how far it goes."""
    value = "" if one.change.value is None else f" {one.change.value}"
    return f"{one.change.kind}{value}{'' if one.strength == 1 else f' at strength {one.strength:g}'}"
