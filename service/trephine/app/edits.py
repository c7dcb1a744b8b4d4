"""Stored edits: named, versioned sets of interventions with a reason and an author."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trephine.app.clock import Clock, SystemClock, timestamp
from trephine.app.models import Models
from trephine.app.names import id_in, require_new_id, resource
from trephine.app.records import RecordFolder, encode
from trephine.domain.edits import Edit
from trephine.domain.errors import (
    AlreadyExistsError,
    FeatureOutOfRangeError,
    InvalidRequestError,
    LayerOutOfRangeError,
    RequestIdReusedError,
    ResourceNotFoundError,
)
from trephine.domain.interventions import FeatureTarget, Intervention
from trephine.domain.models import ModelInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class _Body:
    """What makes two requests the same."""

    edit_id: str
    model: str
    interventions: tuple[Intervention, ...]
    reason: str
    author: str
    evidence: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hashed:
    """What an edit's content hash covers: not its name, not its author."""

    weight_hash: str
    interventions: tuple[Intervention, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEdit:
    """An edit with the request that made it."""

    edit: Edit
    request_id: str
    body_sha256: str


class Edits:
    """Stored edits. Names may be `edits/ID` or `ID`."""

    def __init__(self, folder: Path, models: Models, *, clock: Clock | None = None) -> None:
        self._records = RecordFolder(folder, StoredEdit)
        self._models = models
        self._clock = clock or SystemClock()
        self._creating = asyncio.Lock()

    async def create(
        self,
        edit_id: str,
        model: str,
        interventions: Sequence[Intervention],
        reason: str,
        author: str,
        evidence: Sequence[str] = (),
        request_id: str = "",
    ) -> Edit:
        """Store an edit for the weights of a loaded model; the same request id returns the same edit.

        Raises:
            AlreadyExistsError: If an edit has that name.
            RequestIdReusedError: If the request id came with another edit.
            LayerOutOfRangeError: If the model has no such layer.
            FeatureOutOfRangeError: If the layer has no such feature.
            ModelNotReadyError: If the model is not loaded.
        """
        require_new_id(edit_id, field="edit_id")
        if not interventions:
            raise InvalidRequestError("an edit needs at least one intervention", field="interventions")
        body = _Body(
            edit_id=edit_id,
            model=id_in("models", model),
            interventions=tuple(interventions),
            reason=reason,
            author=author,
            evidence=tuple(evidence),
        )
        digest = hashlib.sha256(encode(body)).hexdigest()
        async with self._creating:
            known = await self._known(edit_id, request_id, digest)
            if known is not None:
                return known
            edit = self._edit(body, await self._models.info(body.model))
            stored = StoredEdit(edit=edit, request_id=request_id, body_sha256=digest)
            await asyncio.to_thread(self._records.write, edit_id, stored)
            return edit

    async def get(self, name: str) -> Edit:
        """Return an edit.

        Raises:
            ResourceNotFoundError: If there is none of that name.
        """
        stored = await asyncio.to_thread(self._records.read, id_in("edits", name))
        if stored is None:
            raise _missing(name)
        return stored.edit

    async def list(self) -> tuple[Edit, ...]:
        """Return every edit, newest first."""
        stored = await asyncio.to_thread(self._records.all)
        edits = [each.edit for each in stored.values()]
        return tuple(sorted(edits, key=lambda edit: (edit.create_time, edit.name), reverse=True))

    async def delete(self, name: str) -> None:
        """Forget an edit; what was exported from it stays.

        Raises:
            ResourceNotFoundError: If there is none of that name.
        """
        if not await asyncio.to_thread(self._records.delete, id_in("edits", name)):
            raise _missing(name)

    async def _known(self, edit_id: str, request_id: str, digest: str) -> Edit | None:
        """The edit that this very request made before, if it did."""
        stored = await asyncio.to_thread(self._records.all)
        if request_id:
            for earlier in stored.values():
                if earlier.request_id == request_id and earlier.body_sha256 == digest:
                    return earlier.edit
                if earlier.request_id == request_id:
                    raise RequestIdReusedError(
                        f"the request id {request_id} came with another edit before; use a new one",
                        name=resource("edits", earlier.edit.name),
                    )
        if self._records.exists(edit_id):
            raise AlreadyExistsError(
                f"there is an edit {edit_id}; choose another name or delete that one",
                name=resource("edits", edit_id),
            )
        return None

    def _edit(self, body: _Body, info: ModelInfo) -> Edit:
        for index, intervention in enumerate(body.interventions):
            _require_known_target(intervention, info, field=f"interventions[{index}].target")
        hashed = _Hashed(weight_hash=info.weight_hash, interventions=body.interventions)
        return Edit(
            name=body.edit_id,
            version=1,
            content_hash=hashlib.sha256(encode(hashed)).hexdigest(),
            interventions=body.interventions,
            reason=body.reason,
            author=body.author,
            model=info.name,
            weight_hash=info.weight_hash,
            evidence=body.evidence,
            create_time=timestamp(self._clock.now()),
        )


def _require_known_target(intervention: Intervention, info: ModelInfo, *, field: str) -> None:
    target = intervention.target
    layer = target.feature.layer if isinstance(target, FeatureTarget) else target.site.layer
    if not 0 <= layer < info.n_layers:
        raise LayerOutOfRangeError(
            f"{info.name} has layers 0 to {info.n_layers - 1}, not {layer}", field=f"{field}.layer"
        )
    if isinstance(target, FeatureTarget) and not 0 <= target.feature.index < info.d_mlp:
        raise FeatureOutOfRangeError(
            f"layer {layer} has features 0 to {info.d_mlp - 1}, not {target.feature.index}",
            field=f"{field}.feature.index",
        )


def _missing(name: str) -> ResourceNotFoundError:
    edit_id = id_in("edits", name)
    return ResourceNotFoundError(f"there is no edit {edit_id}", name=resource("edits", edit_id))
