"""Measuring replacement sets, and keeping what was found."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from trephine.app.jobs.costs import Cost, predict_beside
from trephine.app.jobs.events import forwarded
from trephine.app.jobs.requests import EvaluateSetRequest
from trephine.app.models.models import Models
from trephine.app.sets.evaluation_costs import evaluation_cost
from trephine.app.sets.replacements import Replacements
from trephine.app.storage.artifacts import ArtifactStore
from trephine.app.storage.clock import Clock, SystemClock, timestamp
from trephine.app.storage.names import resource
from trephine.app.storage.records import RecordFolder
from trephine.app.storage.results import found_once, stored_result
from trephine.app.storage.uploaded_texts import read_text
from trephine.domain.artifacts import ArtifactInfo
from trephine.domain.commands import Progress
from trephine.domain.errors import LayerOutOfRangeError
from trephine.domain.replacements import (
    EvaluateReplacementSet,
    ReplacementEvaluation,
    ReplacementSetInfo,
)
from trephine.pages.evaluation_page import evaluation_html
from trephine.pages.evaluation_table import evaluation_csv, evaluation_json

COLLECTION = "evaluations"

EvaluationFormat = Literal["json", "csv", "html"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvaluation:
    """An evaluation with its resource name, `evaluations/ID`."""

    name: str
    create_time: str
    evaluation: ReplacementEvaluation


class Evaluations:
    """Evaluations of replacement sets. Names may be `evaluations/ID` or `ID`."""

    def __init__(
        self,
        folder: Path,
        *,
        models: Models,
        replacements: Replacements,
        artifacts: ArtifactStore,
        clock: Clock | None = None,
    ) -> None:
        self._records = RecordFolder(folder, StoredEvaluation)
        self._models = models
        self._replacements = replacements
        self._artifacts = artifacts
        self._clock = clock or SystemClock()

    async def check(self, request: EvaluateSetRequest) -> ReplacementSetInfo:
        """Refuse at once what cannot be measured; return the set.

        Raises:
            ReplacementNotFoundError: If the set is not loaded, or was lost.
            LayerOutOfRangeError: If it does not cover a layer that is asked for.
            ResourceNotFoundError: If a text was not uploaded.
        """
        info = self._replacements.loaded(request.command.name, request.model)
        covered = {layer.layer for layer in info.layers}
        for index, layer in enumerate(request.command.layers):
            if layer not in covered:
                raise LayerOutOfRangeError(
                    f"{info.name} does not cover layer {layer}; it has "
                    f"{', '.join(map(str, sorted(covered)))}. Name some of these, or load a set that has it",
                    field=f"layers[{index}]",
                    layer=layer,
                )
        await self._command(request)
        return info

    async def predict(self, request: EvaluateSetRequest) -> tuple[ReplacementSetInfo, Cost]:
        """Check a request and predict its cost.

        Raises:
            OverBudgetError: If it would be refused.
            TrephineError: As `check` does.
        """
        info = await self.check(request)
        return info, await self._models.predict_command(request.model, await self._command(request))

    async def run(
        self, request: EvaluateSetRequest, on_progress: Callable[[Progress], None], *, evaluation_id: str
    ) -> StoredEvaluation:
        """Measure and store; what is stored already is not measured again.

        Raises:
            TrephineError: Whatever measuring raised.
        """

        async def measure() -> StoredEvaluation:
            engine = self._models.engine(request.model)
            evaluation = await engine.run(await self._command(request), on_event=forwarded(on_progress))
            return StoredEvaluation(
                name=resource(COLLECTION, evaluation_id),
                create_time=timestamp(self._clock.now()),
                evaluation=evaluation,
            )

        return await found_once(self._records, evaluation_id, measure)

    async def get(self, name: str) -> StoredEvaluation:
        """Return an evaluation.

        Raises:
            ResourceNotFoundError: If there is none of that name.
        """
        return await stored_result(self._records, COLLECTION, name, what="evaluation")

    async def render(self, name: str, format: EvaluationFormat) -> ArtifactInfo:
        """Store an evaluation as a file: everything, one line per figure, or one self-contained page.

        Raises:
            ResourceNotFoundError: If there is none of that name.
        """
        stored = await self.get(name)
        data, media_type = await asyncio.to_thread(_render, stored, format)
        return await self._artifacts.put(data, media_type=media_type)

    async def _command(self, request: EvaluateSetRequest) -> EvaluateReplacementSet:
        text, control = "", ""
        if request.text:
            text = await read_text(self._artifacts, request.text, field="text")
        if request.control_text:
            control = await read_text(self._artifacts, request.control_text, field="control_text")
        return replace(request.command, text=text, control_text=control)


def _render(stored: StoredEvaluation, format: EvaluationFormat) -> tuple[bytes, str]:
    if format == "html":
        page = evaluation_html(stored.evaluation, name=stored.name, create_time=stored.create_time)
        return page.encode(), "text/html; charset=utf-8"
    if format == "csv":
        return evaluation_csv(stored.evaluation).encode(), "text/csv; charset=utf-8"
    return evaluation_json(stored.evaluation, name=stored.name).encode(), "application/json"


predict_beside.register(EvaluateReplacementSet, evaluation_cost)
