"""Spurious features removed from decisions: reports, the edits made of them, and their decision lists."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from trephine.app.edits.edits import Edits
from trephine.app.features.feature_sets import FeatureSets
from trephine.app.jobs.costs import Cost, predict_beside
from trephine.app.jobs.events import forwarded
from trephine.app.jobs.requests import RemoveSpuriousRequest
from trephine.app.models.models import Models
from trephine.app.spurious.spurious_costs import removal_cost, removal_seconds
from trephine.app.storage.artifacts import ArtifactStore
from trephine.app.storage.clock import Clock, SystemClock, timestamp
from trephine.app.storage.names import id_in, require_new_id, resource
from trephine.app.storage.records import RecordFolder
from trephine.app.storage.results import found_once, newest_first, stored_result
from trephine.domain.artifacts import ArtifactInfo
from trephine.domain.commands import Progress
from trephine.domain.errors import (
    AlreadyExistsError,
    ParentChangedError,
    ResourceNotFoundError,
    TrephineError,
)
from trephine.domain.findings import Verdict
from trephine.domain.models import ModelInfo
from trephine.domain.spurious_checks import CheckedSpuriousRemoval, CheckSpuriousRemoval
from trephine.domain.spurious_heads import ClassifierHead, RewardHead
from trephine.domain.spurious_removal import RemoveSpuriousFeatures, SpuriousRemoval
from trephine.pages.spurious_page import spurious_html

COLLECTION = "spuriousRemovals"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRemoval:
    """A report with its resource name, `spuriousRemovals/ID`."""

    name: str
    create_time: str
    edit: str
    """The edit with its version, `no-gender@1`; empty: none was made, or asked for."""
    found: SpuriousRemoval
    unmade: str = ""
    """Name of an edit that was to be made of it and could not be; empty: none."""
    awaited: str = ""
    """Name of an edit that is to be made of it and was not yet when this was written; empty: none."""


class SpuriousRemovals:
    """Reports. Names may be `spuriousRemovals/ID` or `ID`."""

    def __init__(
        self,
        folder: Path,
        *,
        models: Models,
        edits: Edits,
        sets: FeatureSets,
        artifacts: ArtifactStore,
        clock: Clock | None = None,
    ) -> None:
        self._records = RecordFolder(folder, StoredRemoval)
        self._models, self._edits, self._sets = models, edits, sets
        self._artifacts = artifacts
        self._clock = clock or SystemClock()

    async def check(
        self, request: RemoveSpuriousRequest, *, operation_id: str = ""
    ) -> tuple[RemoveSpuriousFeatures, ModelInfo]:
        """Refuse at once what cannot be done; return the command and the model.

        Raises:
            AlreadyExistsError: If the edit's id is taken.
            ReplacementNotFoundError: If the set is not loaded.
            LayerOutOfRangeError: If the model or the set does not have a layer, or no layer reaches the head.
            FeatureOutOfRangeError: If an override names a feature that there is not.
            ModelNotFoundError, PathDeniedError: If there is no such folder with a head.
            TrephineError: Whatever the work would raise before its first forward pass, naming the text, the
                label token or the option.
        """
        command, info, _ = await self._checked(request, operation_id)
        return command, info

    async def _checked(
        self, request: RemoveSpuriousRequest, operation_id: str = ""
    ) -> tuple[RemoveSpuriousFeatures, ModelInfo, CheckedSpuriousRemoval]:
        command, info = await self._named(request, operation_id)
        checked = await self._models.engine(info.name).run(CheckSpuriousRemoval(command=command))
        return command, info, checked

    async def _named(
        self, request: RemoveSpuriousRequest, operation_id: str
    ) -> tuple[RemoveSpuriousFeatures, ModelInfo]:
        """Find everything that a request names."""
        info, command = await self._models.info(request.model), request.command
        found = await self._sets.get(info.name, command.replacement)
        for index, layer in enumerate(command.layers or ()):
            found.require_layer(layer, field=f"layers[{index}]")
        for index, override in enumerate(command.overrides):
            named = await self._sets.get(info.name, override.feature.replacement)
            named.require(override.feature, field=f"overrides[{index}].feature")
        if request.edit_id:
            await self._require_free(request.edit_id, operation_id)
        return self._resolved(command), info

    async def predict(self, request: RemoveSpuriousRequest) -> tuple[RemoveSpuriousFeatures, ModelInfo, Cost]:
        """Check a request and predict its cost.

        Raises:
            OverBudgetError: If it would be refused.
            TrephineError: As `check` does.
        """
        command, info, checked = await self._checked(request)
        cost = await self._models.predict_command(info.name, command)
        return command, info, replace(cost, seconds=removal_seconds(command, info, checked))

    async def run(
        self, request: RemoveSpuriousRequest, on_progress: Callable[[Progress], None], *, removal_id: str
    ) -> StoredRemoval:
        """Judge, remove, measure, and store the report, then the edit; what is stored is not done again.

        An edit that cannot be made any more is a caveat of the report. The report comes first, so that
        whatever ends the work between the two leaves no edit whose evidence is not there.

        Raises:
            TrephineError: Whatever the work raised.
        """

        async def remove() -> StoredRemoval:
            command, info = await self._named(request, removal_id)
            found = await self._models.engine(info.name).run(command, on_event=forwarded(on_progress))
            return StoredRemoval(
                name=resource(COLLECTION, removal_id),
                create_time=timestamp(self._clock.now()),
                edit="",
                found=found,
                awaited=request.edit_id if _makes_edit(request, found) else "",
            )

        stored = await found_once(self._records, removal_id, remove)
        if not stored.awaited:
            return stored
        stored = await self._settled(stored)
        if stored.awaited:
            stored = await self._with_edit(request, stored)
        await asyncio.to_thread(self._records.write, removal_id, stored)
        return stored

    async def get(self, name: str) -> StoredRemoval:
        """Return a report.

        Raises:
            ResourceNotFoundError: If there is none of that name.
        """
        return await self._settled(await stored_result(self._records, COLLECTION, name, what="removal"))

    async def list(self) -> tuple[StoredRemoval, ...]:
        """Return every report, newest first."""
        stored = [await self._settled(one) for one in (await asyncio.to_thread(self._records.all)).values()]
        return newest_first(stored)

    async def render(self, name: str) -> ArtifactInfo:
        """Store a report's decision list as one self-contained page.

        Raises:
            ResourceNotFoundError: If there is none of that name.
        """
        stored = await self.get(name)
        page = await asyncio.to_thread(
            spurious_html,
            stored.found,
            name=stored.name,
            edit=stored.edit,
            create_time=stored.create_time,
            unmade=stored.unmade,
        )
        return await self._artifacts.put(page.encode(), media_type="text/html; charset=utf-8")

    async def _with_edit(self, request: RemoveSpuriousRequest, stored: StoredRemoval) -> StoredRemoval:
        """Make the edit.

        Where its name was taken while the work went on, say, the report is worth what it was.
        """
        found = stored.found
        try:
            await self._require_measured(request.model, found)
            edit = await self._edits.create(
                request.edit_id,
                request.model,
                found.interventions,
                f"spurious features of the decision between {' and '.join(found.labels)}: {found.why}; "
                f"{found.outcome.verdict.value.upper()}: {found.outcome.why}",
                request.author,
                (stored.name,),
                id_in(COLLECTION, stored.name),
            )
        except TrephineError as error:
            told = replace(found, caveats=(*found.caveats, _unmade(request.edit_id, stored.name, error)))
            return replace(stored, found=told, unmade=request.edit_id, awaited="")
        return replace(stored, edit=edit.reference, awaited="")

    async def _require_measured(self, model: str, found: SpuriousRemoval) -> None:
        """Refuse an edit where other weights, or another set of that name, are loaded than were measured.

        Raises:
            ParentChangedError: With both hashes.
        """
        loaded = await self._sets.get(model, found.replacement)
        if loaded.model.weight_hash != found.weight_hash:
            raise ParentChangedError(
                f"{model} has other weights now than those that were measured",
                measured_weights=found.weight_hash,
                model_weights=loaded.model.weight_hash,
            )
        if found.set_hash and loaded.content_hash != found.set_hash:
            raise ParentChangedError(
                f"the set {found.replacement} that is loaded now is another one than was measured, and its "
                "features are others",
                measured_set=found.set_hash,
                loaded_set=loaded.content_hash,
            )

    async def _settled(self, stored: StoredRemoval) -> StoredRemoval:
        """Return a report with its edit, though the work ended before that was written into it."""
        if not stored.awaited:
            return stored
        try:
            edit = await self._edits.get(f"{stored.awaited}@1")
        except ResourceNotFoundError:
            return stored
        return replace(stored, edit=edit.reference, awaited="") if stored.name in edit.evidence else stored

    async def _require_free(self, edit_id: str, operation_id: str) -> None:
        require_new_id(edit_id, field="edit_id")
        try:
            edit = await self._edits.get(edit_id)
        except ResourceNotFoundError:
            return
        if not operation_id or resource(COLLECTION, operation_id) not in edit.evidence:
            raise AlreadyExistsError(
                f"there is an edit {edit_id}; choose another name, or delete it", name=f"edits/{edit_id}"
            )

    def _resolved(self, command: RemoveSpuriousFeatures) -> RemoveSpuriousFeatures:
        decision = command.decision
        if not isinstance(decision, ClassifierHead | RewardHead):
            return command
        folder = self._models.resolve(decision.folder).folder
        return replace(command, decision=replace(decision, folder=folder))


def _makes_edit(request: RemoveSpuriousRequest, found: SpuriousRemoval) -> bool:
    """None is made of a removal that was not shown to hold, unless that was asked for."""
    held = found.outcome.verdict is Verdict.PASS
    return bool(request.edit_id and found.interventions and (held or request.unproven))


def _unmade(edit_id: str, name: str, error: TrephineError) -> str:
    """Say why there is none, and what to do."""
    first = "load what was measured, and " if isinstance(error, ParentChangedError) else ""
    return (
        f"the edit {edit_id} was not made: {error.message}. Nothing else is lost: {first}create an edit of "
        f"this report's interventions under a free name, with {name} as its evidence, and an export of it "
        "can carry the head"
    )


predict_beside.register(RemoveSpuriousFeatures, removal_cost)
