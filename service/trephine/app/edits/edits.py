"""Stored edits: named, versioned sets of interventions with a reason and an author."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trephine.app.edits.edit_requests import Composed, EditUpdate, NewEdit, Reversion
from trephine.app.edits.edit_store import EditStore, StoredEdit, etag_of, missing, split_version
from trephine.app.features.feature_sets import FeatureSets
from trephine.app.models.models import Models
from trephine.app.storage.clock import Clock, SystemClock, timestamp
from trephine.app.storage.names import id_in, require_new_id, resource
from trephine.app.storage.records import encode
from trephine.app.storage.results import newest_first
from trephine.domain.edits import Edit, EditPart, EditSet
from trephine.domain.errors import (
    AlreadyExistsError,
    EditChangedError,
    InvalidRequestError,
    LayerOutOfRangeError,
    ParentChangedError,
)
from trephine.domain.interventions import FeatureTarget, Intervention
from trephine.domain.models import ModelInfo
from trephine.domain.sites import NEURONS, FeatureRef


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hashed:
    """What an edit's content hash covers: not its name, not its author."""

    weight_hash: str
    interventions: tuple[Intervention, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _HashedWithSets(_Hashed):
    """The same of an edit that names features of sets."""

    sets: tuple[EditSet, ...]


_NextVersion = Callable[[StoredEdit], Awaitable[Edit]]
"""Works out the version that follows a stored edit."""


class Edits:
    """Stored edits. Names may be `edits/ID`, `ID`, and either with `@VERSION`."""

    def __init__(
        self, folder: Path, models: Models, sets: FeatureSets, *, clock: Clock | None = None
    ) -> None:
        self._store = EditStore(folder)
        self._models = models
        self._sets = sets
        self._clock = clock or SystemClock()

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
            LayerOutOfRangeError: If the model, or a set, has no such layer.
            FeatureOutOfRangeError: If the layer has no such feature.
            ReplacementNotFoundError: If a set is not loaded beside the model.
            ModelNotReadyError: If the model is not loaded.
        """
        wanted = NewEdit(
            edit_id=edit_id,
            model=id_in("models", model),
            interventions=tuple(interventions),
            reason=reason,
            author=author,
            evidence=tuple(evidence),
        )
        return await self.add(wanted, request_id=request_id)

    async def add(self, wanted: NewEdit, *, request_id: str = "") -> Edit:
        """Store a new edit, as `create` does."""
        require_new_id(wanted.edit_id, field="edit_id")
        _require_some(wanted.interventions)
        digest = hashlib.sha256(encode(wanted)).hexdigest()
        async with self._store.writing:
            known = await self._store.made_by(request_id, digest)
            if known is not None:
                return known
            if self._store.exists(wanted.edit_id):
                raise AlreadyExistsError(
                    f"there is an edit {wanted.edit_id}; update it, choose another name or delete it",
                    name=resource("edits", wanted.edit_id),
                )
            edit = await self._first_version(wanted)
            await self._store.write(StoredEdit(edit=edit, request_id=request_id, body_sha256=digest))
            return edit

    async def get(self, name: str) -> Edit:
        """Return an edit's latest version, or the one that is named.

        Raises:
            ResourceNotFoundError: If there is none of that name or version.
        """
        return await self._store.get(name)

    async def list(self) -> tuple[Edit, ...]:
        """Return the latest version of every edit, newest edit first."""
        edits = [stored.edit for stored in await self._store.all()]
        return newest_first(edits)

    async def versions(self, name: str) -> tuple[Edit, ...]:
        """Return every version of an edit, newest first.

        Raises:
            ResourceNotFoundError: If there is none of that name.
        """
        return tuple(reversed((await self._store.stored(name)).versions))

    async def update(self, update: EditUpdate, *, request_id: str = "") -> Edit:
        """Store another version; what changes nothing returns the latest as it is.

        Raises:
            EditChangedError: If the latest version is not the one that the caller expects.
            ParentChangedError: If interventions change and the model's weights are no longer the edit's.
            RequestIdReusedError: If the request id came with another request.
            TrephineError: As `create` does, for interventions.
        """
        if update.interventions is not None:
            _require_some(update.interventions)

        async def next_version(stored: StoredEdit) -> Edit:
            interventions, sets = stored.edit.interventions, stored.edit.sets
            if update.interventions is not None and update.interventions != interventions:
                interventions = update.interventions
                sets = await self._checked(interventions, await self._same_weights(stored.edit))
            return self._next(
                stored.edit,
                interventions=interventions,
                sets=sets,
                reason=stored.edit.reason if update.reason is None else update.reason,
                author=update.author,
                evidence=stored.edit.evidence if update.evidence is None else update.evidence,
            )

        return await self._append(update, request_id, next_version)

    async def revert(self, reversion: Reversion, *, request_id: str = "") -> Edit:
        """Store another version that does what an earlier one did.

        Raises:
            ResourceNotFoundError: If there is no such version.
            InvalidRequestError: If it is the latest.
            EditChangedError: If the latest version is not the one that the caller expects.
            RequestIdReusedError: If the request id came with another request.
        """

        async def next_version(stored: StoredEdit) -> Edit:
            earlier = await self._store.get(f"{stored.edit.name}@{reversion.version}")
            if earlier.version == stored.edit.version:
                raise InvalidRequestError(
                    f"version {earlier.version} is the latest of {earlier.name}; there is nothing to revert",
                    field="version",
                )
            reason = f"reverts to version {earlier.version}: {earlier.reason}"
            return self._next(
                stored.edit,
                interventions=earlier.interventions,
                sets=earlier.sets,
                reason=reason if reversion.reason is None else reversion.reason,
                author=reversion.author,
                evidence=earlier.evidence,
                parts=earlier.parts,
                reverted_from=earlier.version,
            )

        return await self._append(reversion, request_id, next_version)

    async def delete(self, name: str, *, etag: str = "") -> None:
        """Forget an edit with all its versions; what was exported from it stays.

        Raises:
            ResourceNotFoundError: If there is none of that name.
            InvalidRequestError: If one version is named: versions are what an edit's history is made of.
            EditChangedError: If the latest version is not the one that the caller has seen.
        """
        edit_id, version = split_version(name)
        if version is not None:
            raise InvalidRequestError(
                f"a single version cannot be deleted; delete {edit_id}, or revert it", field="name"
            )
        async with self._store.writing:
            if etag:
                _require_seen(await self._store.get(edit_id), etag, None)
            if not await self._store.delete(edit_id):
                raise missing(edit_id)

    async def _append(
        self, request: EditUpdate | Reversion, request_id: str, next_version: _NextVersion
    ) -> Edit:
        edit_id, version = split_version(request.edit)
        if version is not None:
            raise InvalidRequestError(
                f"versions never change; name the edit alone, {resource('edits', edit_id)}", field="name"
            )
        digest = hashlib.sha256(encode(request)).hexdigest()
        async with self._store.writing:
            known = await self._store.made_by(request_id, digest)
            if known is not None:
                return known
            stored = await self._store.stored(edit_id)
            _require_seen(stored.edit, request.etag, request.expected_version)
            edit = await next_version(stored)
            if _same(edit, stored.edit):
                return stored.edit
            await self._store.write(stored.followed_by(edit, request_id, digest))
            return edit

    async def _first_version(self, wanted: NewEdit) -> Edit:
        info = await self._models.info(wanted.model)
        sets = await self._checked(wanted.interventions, info)
        if isinstance(wanted, Composed):
            _require_made_for(wanted, info, sets)
        now = timestamp(self._clock.now())
        return Edit(
            name=wanted.edit_id,
            version=1,
            content_hash=_content_hash(info.weight_hash, wanted.interventions, sets),
            interventions=wanted.interventions,
            reason=wanted.reason,
            author=wanted.author,
            model=info.name,
            weight_hash=info.weight_hash,
            evidence=wanted.evidence,
            create_time=now,
            update_time=now,
            sets=sets,
            parts=wanted.parts if isinstance(wanted, Composed) else (),
        )

    def _next(
        self,
        before: Edit,
        *,
        interventions: tuple[Intervention, ...],
        sets: tuple[EditSet, ...],
        reason: str,
        author: str,
        evidence: tuple[str, ...],
        parts: tuple[EditPart, ...] | None = None,
        reverted_from: int = 0,
    ) -> Edit:
        if parts is None:  # what was composed stays so until its interventions change
            parts = before.parts if interventions == before.interventions else ()
        return replace(
            before,
            version=before.version + 1,
            content_hash=_content_hash(before.weight_hash, interventions, sets),
            interventions=interventions,
            sets=sets,
            reason=reason,
            author=author,
            evidence=evidence,
            parts=parts,
            reverted_from=reverted_from,
            update_time=timestamp(self._clock.now()),
        )

    async def _same_weights(self, edit: Edit) -> ModelInfo:
        info = await self._models.info(edit.model)
        if info.weight_hash != edit.weight_hash:
            raise ParentChangedError(
                f"the edit {edit.name} was made for other weights than those of {info.name}; create another "
                "edit for this model",
                edit_weights=edit.weight_hash,
                model_weights=info.weight_hash,
            )
        return info

    async def _checked(self, interventions: Sequence[Intervention], info: ModelInfo) -> tuple[EditSet, ...]:
        """Refuse what the model and its sets do not have; return the sets that are named."""
        named: dict[str, str] = {}
        for index, intervention in enumerate(interventions):
            field, target, condition = f"interventions[{index}]", intervention.target, intervention.condition
            if isinstance(target, FeatureTarget):
                named |= await self._named(info, target.feature, f"{field}.target.feature")
            else:
                _require_layer(target.site.layer, info, f"{field}.target.site.layer")
            if condition is not None:
                named |= await self._named(info, condition.feature, f"{field}.condition.feature")
        return tuple(EditSet(name=name, content_hash=named[name]) for name in sorted(named))

    async def _named(self, info: ModelInfo, feature: FeatureRef, field: str) -> dict[str, str]:
        found = await self._sets.get(info.name, feature.replacement)
        found.require(feature, field=field)
        return {} if feature.replacement == NEURONS else {found.name: found.content_hash}


def _require_made_for(wanted: Composed, info: ModelInfo, sets: tuple[EditSet, ...]) -> None:
    """Refuse parts that were made for something else than what is loaded."""
    loaded = {one.name: one.content_hash for one in sets}
    for one in wanted.sets:
        if loaded.get(one.name, one.content_hash) != one.content_hash:
            raise ParentChangedError(
                f"the parts were made for other features than those of the set {one.name} that is loaded; "
                "load that one",
                edit_set=one.content_hash,
                loaded_set=loaded[one.name],
            )
    if wanted.weight_hash != info.weight_hash:
        raise ParentChangedError(
            f"the parts were made for other weights than those of {info.name}; create them again for it",
            edit_weights=wanted.weight_hash,
            model_weights=info.weight_hash,
        )


def _content_hash(
    weight_hash: str, interventions: tuple[Intervention, ...], sets: tuple[EditSet, ...]
) -> str:
    hashed = (
        _HashedWithSets(weight_hash=weight_hash, interventions=interventions, sets=sets)
        if sets
        else _Hashed(weight_hash=weight_hash, interventions=interventions)
    )
    return hashlib.sha256(encode(hashed)).hexdigest()


def _require_some(interventions: Sequence[Intervention]) -> None:
    if not interventions:
        raise InvalidRequestError("an edit needs at least one intervention", field="interventions")


def _require_layer(layer: int, info: ModelInfo, field: str) -> None:
    if not 0 <= layer < info.n_layers:
        raise LayerOutOfRangeError(
            f"{info.name} has layers 0 to {info.n_layers - 1}, not {layer}", field=field
        )


def _require_seen(edit: Edit, etag: str, version: int | None) -> None:
    if (etag and etag != etag_of(edit)) or (version is not None and version != edit.version):
        raise EditChangedError(
            f"{edit.name} is at version {edit.version} now, by {edit.author or 'somebody'}; read it, and "
            "decide again",
            name=resource("edits", edit.name),
            version=edit.version,
            etag=etag_of(edit),
        )


def _same(edit: Edit, before: Edit) -> bool:
    """True if a new version would say nothing new."""
    kept = replace(
        edit,
        version=before.version,
        author=before.author,
        update_time=before.update_time,
        reverted_from=before.reverted_from,
    )
    return kept == before
