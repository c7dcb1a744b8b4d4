"""Request messages about stored edits, from plain arguments. Shared by the sync and the async surface."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.client.errors import InvalidRequestError
from trephine.client.requests import fresh_id, messages, resource
from trephine.client.selection import EditDraft
from trephine.client.sendable import sendable
from trephine.client.types import Edit, Intervention
from trephine.v1 import edit_history_pb2, edit_service_pb2

NO_REASON = "none given"


@sendable
def update(
    edit: Edit | str,
    interventions: EditDraft | Sequence[Intervention] | None,
    reason: str | None,
    author: str,
    evidence: Sequence[str] | None,
    expected_version: int | None,
    request_id: str | None,
) -> edit_history_pb2.UpdateEditRequest:
    """Store another version; an edit given as value must still be the latest.

    Raises:
        InvalidRequestError: If nothing is updated.
    """
    if isinstance(interventions, EditDraft):
        reason = interventions.reason if reason is None else reason
        evidence = interventions.evidence if evidence is None else evidence
    given = {"interventions": interventions, "reason": reason, "evidence": evidence}
    paths = [name for name, value in given.items() if value is not None]
    if not paths:
        raise InvalidRequestError("say what changes: interventions, reason or evidence", field="update_mask")
    request = edit_history_pb2.UpdateEditRequest(
        name=_plain(edit),
        interventions=messages(interventions or ()),
        reason=reason or "",
        author=author,
        evidence=evidence or (),
        etag=edit.etag if isinstance(edit, Edit) else "",
        expected_version=expected_version,
        request_id=fresh_id(request_id),
    )
    request.update_mask.paths.extend(paths)
    return request


@sendable
def revert(
    edit: Edit | str,
    version: int,
    reason: str | None,
    author: str,
    expected_version: int | None,
    request_id: str | None,
) -> edit_history_pb2.RevertEditRequest:
    """Bring an earlier version back; an edit given as value must still be the latest."""
    return edit_history_pb2.RevertEditRequest(
        name=_plain(edit),
        version=version,
        reason=reason,
        author=author,
        etag=edit.etag if isinstance(edit, Edit) else "",
        expected_version=expected_version,
        request_id=fresh_id(request_id),
    )


@sendable
def versions(edit: Edit | str) -> edit_history_pb2.ListEditVersionsRequest:
    """Ask for all versions."""
    return edit_history_pb2.ListEditVersionsRequest(name=_plain(edit), page_size=500)


@sendable
def delete(edit: Edit | str, force: bool) -> edit_service_pb2.DeleteEditRequest:
    """Forget an edit; one given as value must still be the latest version."""
    return edit_service_pb2.DeleteEditRequest(
        name=_plain(edit), force=force, etag=edit.etag if isinstance(edit, Edit) else ""
    )


def _plain(edit: Edit | str) -> str:
    return edit.name if isinstance(edit, Edit) else resource("edits", edit)
