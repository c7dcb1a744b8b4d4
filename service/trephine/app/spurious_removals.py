"""Spurious features removed from decisions: reports, the edits made of them, and their decision lists."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from trephine.app.artifacts import ArtifactStore
from trephine.app.clock import Clock, SystemClock, timestamp
from trephine.app.costs import Cost, predict
from trephine.app.edits import Edits
from trephine.app.feature_sets import FeatureSets
from trephine.app.models import Models
from trephine.app.names import id_in, require_new_id, resource
from trephine.app.records import RecordFolder
from trephine.app.requests import RemoveSpuriousRequest
from trephine.app.spurious_costs import removal_cost
from trephine.domain.artifacts import ArtifactInfo
from trephine.domain.commands import Progress
from trephine.domain.errors import AlreadyExistsError, ResourceNotFoundError, TrephineError
from trephine.domain.findings import Verdict
from trephine.domain.models import ModelInfo
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
            LayerOutOfRangeError: If the model or the set does not have a layer.
            FeatureOutOfRangeError: If an override names a feature that there is not.
            ModelNotFoundError, PathDeniedError: If there is no such folder with a head.
        """
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
        command, info = await self.check(request)
        return command, info, await self._models.predict_command(info.name, command)

    async def run(
        self, request: RemoveSpuriousRequest, on_progress: Callable[[Progress], None], *, removal_id: str
    ) -> StoredRemoval:
        """Judge, remove, measure, and store report and edit; what is stored already is not done again.

        An edit that cannot be made any more is a caveat of the report.

        Raises:
            TrephineError: Whatever the work raised.
        """

        async def forward(progress: Progress) -> None:
            on_progress(progress)

        known = await asyncio.to_thread(self._records.read, removal_id)
        if known is not None:
            return known
        command, info = await self.check(request, operation_id=removal_id)
        found = await self._models.engine(info.name).run(command, on_event=forward)
        stored = await self._with_edit(
            request,
            StoredRemoval(
                name=resource(COLLECTION, removal_id),
                create_time=timestamp(self._clock.now()),
                edit="",
                found=found,
            ),
        )
        await asyncio.to_thread(self._records.write, removal_id, stored)
        return stored

    async def get(self, name: str) -> StoredRemoval:
        """Return a report.

        Raises:
            ResourceNotFoundError: If there is none of that name.
        """
        removal_id = id_in(COLLECTION, name)
        stored = await asyncio.to_thread(self._records.read, removal_id)
        if stored is None:
            raise ResourceNotFoundError(
                f"there is no removal {removal_id}", name=resource(COLLECTION, removal_id)
            )
        return stored

    async def list(self) -> tuple[StoredRemoval, ...]:
        """Return every report, newest first."""
        stored = (await asyncio.to_thread(self._records.all)).values()
        return tuple(sorted(stored, key=lambda one: (one.create_time, one.name), reverse=True))

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
        """Make the edit; a second run of the operation finds the first one's by its request id.

        None is made of a removal that was not shown to hold, unless that was asked for. Where it cannot be
        made, since its name was taken while the work went on, say, the report is worth what it was.
        """
        found = stored.found
        held = found.outcome.verdict is Verdict.PASS
        if not request.edit_id or not found.interventions or not (held or request.unproven):
            return stored
        try:
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
            return replace(stored, found=told, unmade=request.edit_id)
        return replace(stored, edit=edit.reference)

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


def _unmade(edit_id: str, name: str, error: TrephineError) -> str:
    return (
        f"the edit {edit_id} was not made: {error.message}. Nothing else is lost: create an edit of this "
        f"report's interventions under a free name, with {name} as its evidence, and an export of it can "
        "carry the head"
    )


predict.register(RemoveSpuriousFeatures, removal_cost)
