"""Edits and the proposals that they are made from."""

from __future__ import annotations

import re

from trephine.app.edits.edit_requests import EditUpdate, Reversion
from trephine.app.edits.edit_store import etag_of
from trephine.domain.ablation import LogitTarget
from trephine.domain.edits import (
    CurvePoint,
    Edit,
    EditPart,
    EditProposal,
    EditSet,
    ProposeEdit,
    RankedFeature,
)
from trephine.domain.errors import InvalidRequestError
from trephine.rpc.wire.circuits import share
from trephine.rpc.wire.common import feature_to_wire, version_to_wire
from trephine.rpc.wire.edit_evidence import evidence_from_wire
from trephine.rpc.wire.fields import at_least, clean, finite, printable, qualified, required
from trephine.rpc.wire.interventions import intervention_to_wire, interventions_from_wire
from trephine.v1 import edit_history_pb2 as history
from trephine.v1 import edit_service_pb2 as pb

_EDIT_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_UPDATED = ("interventions", "reason", "evidence")
_EDIT_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(?:@[1-9][0-9]{0,8})?")
_EXPORT_ID = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")


def edit_id(text: str) -> str:
    """Read the id of a new edit.

    Raises:
        InvalidRequestError: If it holds anything but lower case letters, digits and dashes.
    """
    if not _EDIT_ID.fullmatch(text):
        raise InvalidRequestError(
            f"edit_id may hold lower case letters, digits and dashes, up to 63; got {printable(text)!r}",
            field="edit_id",
        )
    return text


def edit_reference(name: str, field: str = "name") -> str:
    """Read `edits/ID` or `edits/ID@VERSION`; return it without `edits/`.

    Raises:
        InvalidRequestError: Naming the field and the expected form.
    """
    prefix, _, reference = name.partition("/")
    if prefix != "edits" or not _EDIT_REFERENCE.fullmatch(reference):
        raise InvalidRequestError(
            f"{field} must be a resource name like edits/ID or edits/ID@VERSION, got {printable(name)!r}",
            field=field,
        )
    return reference


def export_id(text: str) -> str:
    """Read the id of a new export.

    Raises:
        InvalidRequestError: If it holds anything but lower case letters, digits, dashes and dots.
    """
    if not _EXPORT_ID.fullmatch(text) or ".." in text:
        raise InvalidRequestError(
            "export_id may hold lower case letters, digits, dashes and single dots, up to 63; "
            f"got {printable(text)!r}",
            field="export_id",
        )
    return text


def propose_from_wire(request: pb.ProposeEditRequest, prompt: str, target: LogitTarget) -> ProposeEdit:
    """Read a search for an edit of `prompt` and `target`, which may come from a circuit.

    Raises:
        InvalidRequestError: Naming the field.
    """
    drop = share(request.min_drop, "min_drop") if request.HasField("min_drop") else 0.5
    damage = finite(request.max_retain_kl, "max_retain_kl") if request.HasField("max_retain_kl") else 0.1
    if damage <= 0:
        raise InvalidRequestError(f"max_retain_kl must be above 0, got {damage}", field="max_retain_kl")
    count = at_least(request.max_features, 1, "max_features") if request.HasField("max_features") else 48
    return ProposeEdit(
        prompt=prompt,
        target=target,
        min_drop=drop,
        max_retain_kl=damage,
        max_features=count,
        retain_text=request.retain_text if request.HasField("retain_text") else None,
    )


def proposal_to_wire(proposal: EditProposal) -> pb.EditProposal:
    """Write a curve and a decision."""
    return pb.EditProposal(
        baseline=proposal.baseline,
        curve=[_point_to_wire(point) for point in proposal.curve],
        ranking=[_ranked_to_wire(ranked) for ranked in proposal.ranking],
        chosen=proposal.chosen,
        why=clean(proposal.why),
        retain_tokens=proposal.retain_tokens,
        retain_text=clean(proposal.retain_text),
        version=version_to_wire(proposal.model, proposal.weight_hash),
    )


def edit_to_wire(edit: Edit) -> pb.Edit:
    """Write a stored edit."""
    return pb.Edit(
        name=qualified("edits", edit.name),
        version=edit.version,
        content_hash=clean(edit.content_hash),
        interventions=[intervention_to_wire(one) for one in edit.interventions],
        reason=clean(edit.reason),
        author=clean(edit.author),
        evidence=[clean(name) for name in edit.evidence],
        create_time=clean(edit.create_time),
        made_for=version_to_wire(edit.model, edit.weight_hash),
        update_time=clean(edit.update_time or edit.create_time),
        etag=etag_of(edit),
        sets=[edit_set_to_wire(one) for one in edit.sets],
        reverted_from=edit.reverted_from,
        parts=[_part_to_wire(part) for part in edit.parts],
    )


def update_from_wire(request: history.UpdateEditRequest) -> EditUpdate:
    """Read what the next version of an edit is to be.

    Raises:
        InvalidRequestError: Naming the field.
    """
    given = _replaced(request)
    return EditUpdate(
        edit=edit_reference(request.name),
        author=request.author,
        interventions=(interventions_from_wire(request.interventions) if "interventions" in given else None),
        reason=required(request.reason, "reason") if "reason" in given else None,
        evidence=evidence_from_wire(request.evidence) if "evidence" in given else None,
        etag=request.etag,
        expected_version=_expected(request),
    )


def reversion_from_wire(request: history.RevertEditRequest) -> Reversion:
    """Read which version is to come back.

    Raises:
        InvalidRequestError: Naming the field.
    """
    return Reversion(
        edit=edit_reference(request.name),
        version=at_least(request.version, 1, "version"),
        author=request.author,
        reason=required(request.reason, "reason") if request.HasField("reason") else None,
        etag=request.etag,
        expected_version=_expected(request),
    )


def _replaced(request: history.UpdateEditRequest) -> frozenset[str]:
    """Which fields an update replaces: those of its mask, else those that it gives."""
    if not request.HasField("update_mask"):
        given = frozenset(name for name in _UPDATED if getattr(request, name))
        if not given:
            raise InvalidRequestError(
                f"nothing is updated: give at least one of {', '.join(_UPDATED)}", field="update_mask"
            )
        return given
    unknown = sorted(set(request.update_mask.paths) - set(_UPDATED))
    if unknown or not request.update_mask.paths:
        raise InvalidRequestError(
            f"update_mask may name {', '.join(_UPDATED)}, got {printable(', '.join(unknown)) or 'nothing'}",
            field="update_mask",
        )
    return frozenset(request.update_mask.paths)


def _expected(request: history.UpdateEditRequest | history.RevertEditRequest) -> int | None:
    if not request.HasField("expected_version"):
        return None
    return at_least(request.expected_version, 1, "expected_version")


def edit_set_to_wire(named: EditSet) -> history.EditSet:
    """Write a set with what was in it."""
    return history.EditSet(name=clean(named.name), content_hash=clean(named.content_hash))


def _part_to_wire(part: EditPart) -> history.EditPart:
    return history.EditPart(
        edit=qualified("edits", f"{part.name}@{part.version}"),
        content_hash=clean(part.content_hash),
        strength=part.strength,
    )


def _point_to_wire(point: CurvePoint) -> pb.CurvePoint:
    return pb.CurvePoint(
        count=point.count,
        value=point.value,
        drop=point.drop,
        retain_kl=point.retain_kl,
        retain_kl_after_first=point.retain_kl_after_first,
    )


def _ranked_to_wire(ranked: RankedFeature) -> pb.RankedFeature:
    return pb.RankedFeature(
        feature=feature_to_wire(ranked.feature), effect=ranked.effect, use=ranked.use, score=ranked.score
    )
