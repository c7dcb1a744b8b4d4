"""Edits that requests are served under: uses, echoes, conflicts, compositions, differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from trephine.app.edits.edit_composition import Composition
from trephine.domain.edit_conflicts import ConflictKind, EditConflict, EditInUse
from trephine.domain.edit_diff import ChangeKind, EditDiff, InterventionChange
from trephine.domain.errors import InvalidRequestError
from trephine.domain.interventions import Applied, Intervention
from trephine.domain.live_edits import EditUse, LiveSetting
from trephine.rpc.wire.edit_evidence import evidence_from_wire
from trephine.rpc.wire.edits import edit_id, edit_reference
from trephine.rpc.wire.fields import clean, finite, qualified, within
from trephine.rpc.wire.interventions import applied_to_wire, intervention_to_wire
from trephine.v1 import interventions_pb2
from trephine.v1 import live_edits_pb2 as pb

_KINDS = {kind: pb.EditConflictKind.Value(f"EDIT_CONFLICT_KIND_{kind.name}") for kind in ConflictKind}
_CHANGES = {
    kind: pb.InterventionChangeKind.Value(f"INTERVENTION_CHANGE_KIND_{kind.name}") for kind in ChangeKind
}


def uses_from_wire(messages: Iterable[pb.EditUse], field: str = "edits") -> tuple[EditUse, ...]:
    """Read which edits are used, and how far each goes.

    Raises:
        InvalidRequestError: Naming the field, `edits[1].strength`.
    """
    return tuple(_use_from_wire(one, f"{field}[{place}]") for place, one in enumerate(messages))


def setting_to_wire(setting: LiveSetting) -> pb.LiveEdits:
    """Write what a model serves by default."""
    return pb.LiveEdits(
        model=qualified("models", setting.model),
        edits=[_use_to_wire(use) for use in setting.uses],
        update_time=clean(setting.update_time),
    )


def interventions_of(stack: Sequence[EditInUse]) -> tuple[Intervention, ...]:
    """Everything that a stack of edits does, in order."""
    return tuple(intervention for one in stack for intervention in one.interventions)


def split_echo(
    applied: Sequence[Applied], stack: Sequence[EditInUse]
) -> tuple[list[pb.AppliedEdit], tuple[Applied, ...]]:
    """Write what edits did, each from its own intervention 0, and return the echo of the request's own.

    Args:
        applied: One entry per intervention: those of the edits first.
        stack: The edits, in order.
    """
    written: list[pb.AppliedEdit] = []
    start = 0
    for one in stack:
        end = start + len(one.interventions)
        echoes = applied_to_wire(applied[start:end])
        for place, echo in enumerate(echoes):
            echo.index = place
        written.append(
            pb.AppliedEdit(
                edit=qualified("edits", one.edit.reference),
                content_hash=clean(one.edit.content_hash),
                strength=one.strength,
                applied=echoes,
            )
        )
        start = end
    return written, tuple(applied[start:])


def own_echo(applied: Sequence[Applied], first: int) -> list[interventions_pb2.Applied]:
    """Write the echo of a request's own interventions, which come after `first` of edits."""
    echoes = applied_to_wire(applied)
    for echo in echoes:
        echo.index -= first
    return echoes


def composition_from_wire(request: pb.ComposeEditsRequest) -> Composition:
    """Read what is to become one edit.

    Raises:
        InvalidRequestError: Naming the field.
    """
    return Composition(
        edit_id=edit_id(request.edit_id),
        parts=uses_from_wire(request.parts, "parts"),
        author=request.author,
        reason=request.reason,
        evidence=evidence_from_wire(request.evidence),
    )


def conflict_to_wire(conflict: EditConflict) -> pb.EditConflict:
    """Write two edits that cannot act together."""
    message = pb.EditConflict(
        kind=_KINDS[conflict.kind],
        first=qualified("edits", conflict.first),
        second=qualified("edits", conflict.second),
        target=clean(conflict.target),
        positions=clean(conflict.positions),
        why=clean(conflict.why),
    )
    if conflict.target:
        message.first_intervention = conflict.first_intervention
        message.second_intervention = conflict.second_intervention
    return message


def diff_to_wire(found: EditDiff) -> pb.DiffEditsResponse:
    """Write what differs."""
    return pb.DiffEditsResponse(
        first=qualified("edits", found.first.reference),
        second=qualified("edits", found.second.reference),
        same_content=found.same_content,
        changes=[_change_to_wire(one) for one in found.changes],
        unchanged=found.unchanged,
        reordered=found.reordered,
        fields=found.fields,
    )


def _use_from_wire(message: pb.EditUse, field: str) -> EditUse:
    with within(field):
        strength = finite(message.strength, "strength") if message.HasField("strength") else 1.0
        if strength < 0:
            raise InvalidRequestError(
                f"strength must not be negative, got {strength:g}; 0 does nothing, 1 is as stored",
                field="strength",
            )
        return EditUse(edit=edit_reference(message.edit, "edit"), strength=strength)


def _use_to_wire(use: EditUse) -> pb.EditUse:
    return pb.EditUse(edit=qualified("edits", use.edit), strength=use.strength)


def _change_to_wire(change: InterventionChange) -> pb.InterventionChange:
    return pb.InterventionChange(
        kind=_CHANGES[change.kind],
        before=None if change.before is None else intervention_to_wire(change.before),
        after=None if change.after is None else intervention_to_wire(change.after),
        fields=change.fields,
    )
