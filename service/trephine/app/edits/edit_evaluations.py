"""Measuring stored edits, and keeping what was found with them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trephine.app.edits.edit_evaluation_costs import edit_evaluation_cost
from trephine.app.edits.edit_store import split_version
from trephine.app.edits.edits import Edits
from trephine.app.jobs.costs import Cost, predict
from trephine.app.jobs.events import forwarded
from trephine.app.jobs.requests import EvaluateEditRequest
from trephine.app.models.models import Models
from trephine.app.storage.clock import Clock, SystemClock, timestamp
from trephine.app.storage.records import RecordFolder
from trephine.app.storage.results import found_once, newest_first
from trephine.domain.commands import Progress
from trephine.domain.edit_evaluation import EditEvaluation, EvaluateEdit
from trephine.domain.edit_weights import require_weights
from trephine.domain.edits import Edit
from trephine.domain.errors import InvalidRequestError, ResourceNotFoundError
from trephine.domain.models import ModelInfo

_NAME = re.compile(r"edits/(?P<edit>[A-Za-z0-9][A-Za-z0-9._-]*)/evaluations/(?P<id>[A-Za-z0-9]{1,64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEditEvaluation:
    """An evaluation with its resource name, `edits/EDIT/evaluations/ID`."""

    name: str
    create_time: str
    evaluation: EditEvaluation


class EditEvaluations:
    """Evaluations of edits."""

    def __init__(self, folder: Path, *, edits: Edits, models: Models, clock: Clock | None = None) -> None:
        self._records = RecordFolder(folder, StoredEditEvaluation)
        self._edits, self._models = edits, models
        self._clock = clock or SystemClock()

    async def check(self, request: EvaluateEditRequest) -> tuple[EvaluateEdit, ModelInfo]:
        """Refuse at once what cannot be measured; return the command and the model that carries it out.

        Raises:
            ResourceNotFoundError: If there is no such edit or version.
            ModelNotReadyError, ModelNotFoundError: If its model is not loaded.
            ParentChangedError: If the model's weights are not those of the edit.
            InvalidRequestError: If sets or options make no sense.
        """
        edit = await self._edits.get(request.edit)
        info = await self._models.info(request.model or edit.model)
        require_weights(edit, info.name, info.weight_hash)
        return _command(request, edit), info

    async def predict(self, request: EvaluateEditRequest) -> tuple[EvaluateEdit, ModelInfo, Cost]:
        """Check a request and predict its cost.

        Raises:
            OverBudgetError: If it would be refused.
            TrephineError: As `check` does.
        """
        command, info = await self.check(request)
        return command, info, await self._models.predict_command(info.name, command)

    async def run(
        self, request: EvaluateEditRequest, on_progress: Callable[[Progress], None], *, evaluation_id: str
    ) -> StoredEditEvaluation:
        """Measure and store; what is stored already is not measured again.

        Raises:
            TrephineError: Whatever measuring raised.
        """

        async def measure() -> StoredEditEvaluation:
            command, info = await self.check(request)
            evaluation = await self._models.engine(info.name).run(command, on_event=forwarded(on_progress))
            return StoredEditEvaluation(
                name=f"edits/{evaluation.edit}/evaluations/{evaluation_id}",
                create_time=timestamp(self._clock.now()),
                evaluation=evaluation,
            )

        return await found_once(self._records, evaluation_id, measure)

    async def get(self, name: str) -> StoredEditEvaluation:
        """Return an evaluation.

        Raises:
            InvalidRequestError: If it is no name of one.
            ResourceNotFoundError: If there is none of that name.
        """
        found = _NAME.fullmatch(name)
        if found is None:
            raise InvalidRequestError(f"{name!r} is not a name like edits/EDIT/evaluations/ID", field="name")
        stored = await asyncio.to_thread(self._records.read, found["id"])
        if stored is None or stored.name != name:
            raise ResourceNotFoundError(f"there is no evaluation {name}", name=name)
        return stored

    async def list(self, edit: str) -> tuple[StoredEditEvaluation, ...]:
        """Return an edit's evaluations, or those of one version, newest first.

        Of another edit that had the name before there are none, though one ended after it was deleted.

        Raises:
            ResourceNotFoundError: If there is no such edit or version.
        """
        named = await self._edits.get(edit)
        _, version = split_version(edit)
        contents = {one.version: one.content_hash for one in await self._edits.versions(named.name)}
        found = [
            one
            for one in (await asyncio.to_thread(self._records.all)).values()
            if one.evaluation.edit == named.name
            and version in (None, one.evaluation.version)
            and contents.get(one.evaluation.version) == one.evaluation.content_hash
        ]
        return newest_first(found)

    async def data(self) -> frozenset[str]:
        """Return the digests of all texts and items that edits were evaluated on."""
        stored = await asyncio.to_thread(self._records.all)
        return frozenset(result.sha256 for one in stored.values() for result in one.evaluation.sets)

    async def delete_of(self, edit_id: str) -> None:
        """Forget the evaluations of an edit."""
        for identifier, one in (await asyncio.to_thread(self._records.all)).items():
            if one.evaluation.edit == edit_id:
                await asyncio.to_thread(self._records.delete, identifier)


def _command(request: EvaluateEditRequest, edit: Edit) -> EvaluateEdit:
    return EvaluateEdit(
        edit=edit,
        sets=request.sets,
        controls=request.controls,
        bounds=request.bounds,
        prompting=request.prompting,
        resamples=request.resamples,
        seed=request.seed,
    )


predict.register(EvaluateEdit, edit_evaluation_cost)
