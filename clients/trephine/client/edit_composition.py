"""Several edits at once: composed into one, compared, served by default."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.client.decoding import decode
from trephine.client.edit_history import current_user
from trephine.client.evidence import told
from trephine.client.requests import AnyEdit, edit_name, fresh_id, uses
from trephine.client.sendable import sendable
from trephine.client.types import Edit, EditConflict, EditDiff, LiveEdits, ModelInfo
from trephine.client.wire import Wire
from trephine.v1 import live_edits_pb2 as pb


class EditComposition:
    """The part of the edits' surface that is about several of them."""

    _wire: Wire

    def compose(
        self,
        name: str,
        parts: Sequence[AnyEdit],
        *,
        reason: str | None = None,
        author: str | None = None,
        evidence: Sequence[str] = (),
        request_id: str | None = None,
    ) -> Edit:
        """Store one edit that does what several do, each at its strength, in their order.

        Args:
            name: Lower case letters, digits and dashes.
            parts: Edits, by name or as values; `edit.at(0.5)` goes half as far.
            reason: Why; unset: that it is composed, and of what.
            author: Who; unset: the name of the user who runs this.
            evidence: Names of circuits and audits, beside those of the parts.
            request_id: The same id again returns the same edit.

        Raises:
            EditConflictError: If two of them cannot act together; `conflicts` lists all reasons.
        """
        request = composition(name, parts, reason, author or current_user(), evidence, request_id)
        return told(decode(Edit, self._wire.call(self._wire.edits.ComposeEdits, request).edit))

    def conflicts(self, parts: Sequence[AnyEdit]) -> tuple[EditConflict, ...]:
        """What stands in the way of a composition; nothing is stored."""
        response = self._wire.call(self._wire.edits.ComposeEdits, check(parts))
        return tuple(decode(EditConflict, one) for one in response.conflicts)

    def diff(self, first: Edit | str, second: Edit | str) -> EditDiff:
        """What differs between two edits, or two versions: `diff("quiet@1", "quiet")`."""
        return decode(EditDiff, self._wire.call(self._wire.edits.DiffEdits, comparison(first, second)))


class ServedModel:
    """The part of a model's surface that says which edits it serves by default."""

    _wire: Wire
    info: ModelInfo

    def live_edits(self) -> LiveEdits:
        """The edits under which it serves requests that name none."""
        request = pb.GetLiveEditsRequest(model=self.info.name)
        return decode(LiveEdits, self._wire.call(self._wire.edits.GetLiveEdits, request))

    def set_live_edits(self, edits: Sequence[AnyEdit]) -> LiveEdits:
        """Serve these to every request that names none, from now on; an empty list ends that.

        An edit that is named without a version follows its updates and reversions at once. Discovery, audits
        and measurements always see the model itself.

        Raises:
            EditConflictError: If two of them cannot act together.
        """
        response = self._wire.call(self._wire.edits.SetLiveEdits, setting(self.info.name, edits))
        return decode(LiveEdits, response)


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
