"""Several edits at once: composed into one, compared, served by default."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.client.aio.wire import AsyncWire
from trephine.client.authors import current_user
from trephine.client.composition_requests import check, comparison, composition, setting
from trephine.client.decoding import decode
from trephine.client.evidence import told
from trephine.client.requests import AnyEdit
from trephine.client.types import Edit, EditConflict, EditDiff, LiveEdits, ModelInfo
from trephine.v1 import live_edits_pb2 as pb


class AsyncEditComposition:
    """The part of the edits' surface that is about several of them."""

    _wire: AsyncWire

    async def compose(
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
        message = await self._wire.call(self._wire.edits.ComposeEdits, request)
        return told(decode(Edit, message.edit))

    async def conflicts(self, parts: Sequence[AnyEdit]) -> tuple[EditConflict, ...]:
        """What stands in the way of a composition; nothing is stored."""
        response = await self._wire.call(self._wire.edits.ComposeEdits, check(parts))
        return tuple(decode(EditConflict, one) for one in response.conflicts)

    async def diff(self, first: Edit | str, second: Edit | str) -> EditDiff:
        """What differs between two edits, or two versions: `diff("quiet@1", "quiet")`."""
        response = await self._wire.call(self._wire.edits.DiffEdits, comparison(first, second))
        return decode(EditDiff, response)


class AsyncServedModel:
    """The part of a model's surface that says which edits it serves by default."""

    _wire: AsyncWire
    info: ModelInfo

    async def live_edits(self) -> LiveEdits:
        """The edits under which it serves requests that name none."""
        request = pb.GetLiveEditsRequest(model=self.info.name)
        return decode(LiveEdits, await self._wire.call(self._wire.edits.GetLiveEdits, request))

    async def set_live_edits(self, edits: Sequence[AnyEdit]) -> LiveEdits:
        """Serve these to every request that names none, from now on; an empty list ends that.

        An edit that is named without a version follows its updates and reversions at once. Discovery, audits
        and measurements always see the model itself.

        Raises:
            EditConflictError: If two of them cannot act together.
        """
        response = await self._wire.call(self._wire.edits.SetLiveEdits, setting(self.info.name, edits))
        return decode(LiveEdits, response)
