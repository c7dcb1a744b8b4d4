"""Serving edits live: those that a request names, else those that its model serves by default."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from trephine.app.edits.edit_stacks import EditStacks
from trephine.app.storage.clock import Clock, SystemClock, timestamp
from trephine.app.storage.names import id_in, resource
from trephine.app.storage.records import RecordFolder
from trephine.domain.edit_conflicts import EditInUse
from trephine.domain.errors import ModelNotFoundError, ReplacementNotFoundError, ResourceNotFoundError
from trephine.domain.live_edits import EditUse, LiveSetting


class LiveEdits:
    """Defaults of models, and the edits of one request."""

    def __init__(self, folder: Path, stacks: EditStacks, *, clock: Clock | None = None) -> None:
        self._records = RecordFolder(folder, LiveSetting)
        self._stacks = stacks
        self._clock = clock or SystemClock()

    async def get(self, model: str) -> LiveSetting:
        """Return what a model serves by default; nothing if none was ever set."""
        name = id_in("models", model)
        found = await asyncio.to_thread(self._records.read, name)
        return found or LiveSetting(model=name, uses=(), update_time="")

    async def set(self, model: str, uses: Sequence[EditUse]) -> LiveSetting:
        """Let a loaded model serve edits by default; none ends that.

        Raises:
            EditConflictError: If two cannot act together.
            ParentChangedError: If one was made for other weights or sets.
            TrephineError: As `EditStacks.for_model` does.
        """
        name = id_in("models", model)
        await self._stacks.for_model(uses, name, field="edits")
        setting = LiveSetting(model=name, uses=tuple(uses), update_time=timestamp(self._clock.now()))
        if uses:
            await asyncio.to_thread(self._records.write, name, setting)
        else:
            await asyncio.to_thread(self._records.delete, name)
        return setting

    async def stack(
        self, model: str, uses: Sequence[EditUse], *, plain: bool = False, field: str = "edits"
    ) -> tuple[EditInUse, ...]:
        """Return the edits of a request: those that it names, else the model's own, unless it is plain.

        Raises:
            TrephineError: As `EditStacks.for_model` does.
        """
        name = id_in("models", model)
        if uses:
            return await self._stacks.for_model(uses, name, field=field)
        return () if plain else await self._default(name, field)

    async def _default(self, model: str, field: str) -> tuple[EditInUse, ...]:
        uses = (await self.get(model)).uses
        try:
            return await self._stacks.for_model(uses, model, field=field) if uses else ()
        except (ModelNotFoundError, ReplacementNotFoundError):
            raise  # the edit is there; what it acts on is not
        except ResourceNotFoundError as error:
            raise ResourceNotFoundError(
                f"{resource('models', model)} is set to serve an edit to requests that name none, and it is "
                f"gone ({error.message}); let it serve another one, or none: `trephine edits serve --none`",
                **error.context,
            ) from error

    async def models_serving(self, edit_id: str) -> tuple[str, ...]:
        """List the models that serve an edit by default, in any version."""
        settings = await asyncio.to_thread(self._records.all)
        return tuple(name for name, one in settings.items() if any(_names(use, edit_id) for use in one.uses))

    async def drop(self, edit_id: str) -> None:
        """Stop serving an edit by default."""
        for name in await self.models_serving(edit_id):
            setting = await self.get(name)
            left = tuple(use for use in setting.uses if not _names(use, edit_id))
            changed = LiveSetting(model=name, uses=left, update_time=timestamp(self._clock.now()))
            if left:
                await asyncio.to_thread(self._records.write, name, changed)
            else:
                await asyncio.to_thread(self._records.delete, name)


def _names(use: EditUse, edit_id: str) -> bool:
    return use.edit.partition("@")[0].removeprefix("edits/") == edit_id
