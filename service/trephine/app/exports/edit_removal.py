"""Deleting edits: refused while something rests on them."""

from __future__ import annotations

import asyncio

from trephine.app.edits.edit_evaluations import EditEvaluations
from trephine.app.edits.edits import Edits
from trephine.app.edits.live_edits import LiveEdits
from trephine.app.exports.exports import Exports
from trephine.app.storage.names import resource
from trephine.domain.edits import Edit
from trephine.domain.errors import EditInUseError

_LISTED = 5


class EditRemoval:
    """Deletes edits and what belongs to them."""

    def __init__(
        self, edits: Edits, *, exports: Exports, evaluations: EditEvaluations, live: LiveEdits
    ) -> None:
        self._edits = edits
        self._live = live
        self._exports = exports
        self._evaluations = evaluations

    async def delete(self, name: str, *, force: bool = False, etag: str = "") -> None:
        """Forget an edit with all its versions and evaluations.

        Args:
            name: The edit.
            force: Also if something rests on it. Exports and other edits stay as they are; models that serve
                it by default stop.
            etag: The version that the caller has seen; empty: any.

        Raises:
            EditInUseError: If something rests on it; the message lists what.
            EditChangedError: If the latest version is not the one that the caller has seen.
            ResourceNotFoundError: If there is no such edit.
            InvalidRequestError: If a single version is named.
        """
        edit = await self._edits.get(name)
        resting = () if force else await self.dependants(edit)
        if resting:
            more = f" and {len(resting) - _LISTED} more" if len(resting) > _LISTED else ""
            raise EditInUseError(
                f"{', '.join(resting[:_LISTED])}{more} rest on the edit {edit.name}; revert it instead, or "
                "delete it with force: exports and other edits stay as they are, models stop serving it",
                name=resource("edits", edit.name),
                dependants=len(resting),
            )
        # A caller that leaves in between must not leave a model behind that serves what is gone.
        await asyncio.shield(self._forget(name, edit.name, etag))

    async def _forget(self, name: str, edit_id: str, etag: str) -> None:
        await self._edits.delete(name, etag=etag)
        await self._live.drop(edit_id)
        await self._evaluations.delete_of(edit_id)

    async def dependants(self, edit: Edit) -> tuple[str, ...]:
        """List the resources that rest on an edit."""
        exports = [
            resource("exports", export.name)
            for export in await self._exports.list()
            if export.certificate.edit.removeprefix("edits/") == edit.name
        ]
        served = [
            f"{resource('models', model)} (served live)"
            for model in await self._live.models_serving(edit.name)
        ]
        composed = [
            resource("edits", other.name)
            for other in await self._edits.list()
            if any(part.name == edit.name for part in other.parts)
        ]
        return (*exports, *served, *composed)
