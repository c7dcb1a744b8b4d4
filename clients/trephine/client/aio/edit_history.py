"""Versions of stored edits."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.client import edit_requests
from trephine.client.aio.wire import AsyncWire
from trephine.client.authors import current_user
from trephine.client.decoding import decode
from trephine.client.evidence import told
from trephine.client.selection import EditDraft
from trephine.client.types import Edit, Intervention


class AsyncEditHistory:
    """The part of the edits' surface that changes what is stored."""

    _wire: AsyncWire

    async def update(
        self,
        edit: Edit | str,
        interventions: EditDraft | Sequence[Intervention] | None = None,
        *,
        reason: str | None = None,
        author: str | None = None,
        evidence: Sequence[str] | None = None,
        expected_version: int | None = None,
        request_id: str | None = None,
    ) -> Edit:
        """Store another version; earlier ones stay, as `NAME@VERSION`. What changes nothing stores nothing.

        Args:
            edit: The edit, which must still be the latest version, or its name.
            interventions: In the place of those there are; a draft also brings reason and evidence.
            reason: Why.
            author: Who; unset: the name of the user who runs this.
            evidence: Names of circuits and audits, in the place of those there are.
            expected_version: The latest version must be this one. Unset: any.
            request_id: The same id again returns the same version.

        Raises:
            EditChangedError: If somebody has made another version meanwhile.
        """
        request = edit_requests.update(
            edit, interventions, reason, author or current_user(), evidence, expected_version, request_id
        )
        return told(decode(Edit, await self._wire.call(self._wire.edits.UpdateEdit, request)))

    async def revert(
        self,
        edit: Edit | str,
        version: int,
        *,
        reason: str | None = None,
        author: str | None = None,
        expected_version: int | None = None,
        request_id: str | None = None,
    ) -> Edit:
        """Store another version that does what an earlier one did.

        Args:
            edit: The edit, which must still be the latest version, or its name.
            version: The version that comes back.
            reason: Why; unset: that it reverts, and the earlier version's reason.
            author: Who; unset: the name of the user who runs this.
            expected_version: The latest version must be this one. Unset: any.
            request_id: The same id again returns the same version.

        Raises:
            EditChangedError: If somebody has made another version meanwhile.
        """
        request = edit_requests.revert(
            edit, version, reason, author or current_user(), expected_version, request_id
        )
        return decode(Edit, await self._wire.call(self._wire.edits.RevertEdit, request))

    async def versions(self, edit: Edit | str) -> tuple[Edit, ...]:
        """Every version of an edit, newest first."""
        found = self._wire.pages(self._wire.edits.ListEditVersions, edit_requests.versions(edit))
        return tuple([decode(Edit, one) async for page in found for one in page.edits])

    async def delete(self, name: Edit | str, *, force: bool = False) -> None:
        """Forget an edit with all its versions. What was exported from it stays.

        Args:
            name: The edit, which must still be the latest version, or its name.
            force: Also if exports, served models or other edits rest on it.

        Raises:
            EditInUseError: If something rests on it.
        """
        await self._wire.call(self._wire.edits.DeleteEdit, edit_requests.delete(name, force))
