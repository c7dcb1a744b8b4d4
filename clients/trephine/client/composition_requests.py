"""Requests about several edits at once."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.client.requests import AnyEdit, edit_name, fresh_id, uses
from trephine.client.sendable import sendable
from trephine.client.types import Edit
from trephine.v1 import live_edits_pb2 as pb


@sendable
def composition(
    name: str,
    parts: Sequence[AnyEdit],
    reason: str | None,
    author: str,
    evidence: Sequence[str],
    request_id: str | None,
) -> pb.ComposeEditsRequest:
    """Make one edit out of several."""
    return pb.ComposeEditsRequest(
        edit_id=name.removeprefix("edits/"),
        parts=uses(parts),
        reason=reason or "",
        author=author,
        evidence=evidence,
        request_id=fresh_id(request_id),
    )


@sendable
def check(parts: Sequence[AnyEdit]) -> pb.ComposeEditsRequest:
    """Only list conflicts."""
    return pb.ComposeEditsRequest(edit_id="check", parts=uses(parts), validate_only=True)


@sendable
def comparison(first: Edit | str, second: Edit | str) -> pb.DiffEditsRequest:
    """Compare two."""
    return pb.DiffEditsRequest(first=edit_name(first), second=edit_name(second))


@sendable
def setting(model: str, edits: Sequence[AnyEdit]) -> pb.SetLiveEditsRequest:
    """Serve edits by default."""
    return pb.SetLiveEditsRequest(model=model, edits=uses(edits))
