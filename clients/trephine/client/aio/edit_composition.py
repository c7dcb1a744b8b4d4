"""Several edits at once, awaited."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.client.aio.wire import AsyncWire
from trephine.client.decoding import decode
from trephine.client.edit_composition import check, comparison, composition, setting
from trephine.client.edit_history import current_user
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
        """Store one edit that does what several do; arguments and errors are those of the sync client."""
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
        """Serve these to every request that names none, from now on; an empty list ends that."""
        response = await self._wire.call(self._wire.edits.SetLiveEdits, setting(self.info.name, edits))
        return decode(LiveEdits, response)
