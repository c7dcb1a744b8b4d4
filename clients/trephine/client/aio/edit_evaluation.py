"""Measuring stored edits, awaited."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trephine.client.aio.operations import AsyncOperation
from trephine.client.aio.wire import AsyncWire
from trephine.client.edit_evaluation import evaluation, listed, named, request
from trephine.client.operations import OnProgress
from trephine.client.types import Edit, EditEvaluation, EvaluationSet


class AsyncEditEvaluations:
    """The part of the edits' surface that measures."""

    _wire: AsyncWire

    async def evaluate(
        self,
        edit: Edit | str,
        sets: Sequence[EvaluationSet],
        *,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> EditEvaluation:
        """What an edit does to its targets and to the rest; `options` are those of the sync client."""
        return await (await self.start_evaluate(edit, sets, **options)).result(on_progress=on_progress)

    async def start_evaluate(
        self, edit: Edit | str, sets: Sequence[EvaluationSet], **options: Any
    ) -> AsyncOperation[EditEvaluation]:
        """Start an evaluation; `options` are those of the sync client."""
        message = await self._wire.call(self._wire.edits.EvaluateEdit, request(edit, sets, **options))
        return AsyncOperation(self._wire, message, evaluation)

    async def predict_evaluation(
        self, edit: Edit | str, sets: Sequence[EvaluationSet], **options: Any
    ) -> EditEvaluation:
        """Check an evaluation and say what it would take: `seconds` and `peak_extra_bytes`."""
        asked = request(edit, sets, validate_only=True, **options)
        message = await self._wire.call(self._wire.edits.EvaluateEdit, asked)
        return await AsyncOperation(self._wire, message, evaluation).result()

    async def evaluation(self, name: str) -> EditEvaluation:
        """One evaluation by name."""
        return evaluation(await self._wire.call(self._wire.edits.GetEditEvaluation, named(name)))

    async def evaluations(self, edit: Edit | str) -> tuple[EditEvaluation, ...]:
        """Evaluations of an edit, of one version if it is named, newest first."""
        found = self._wire.pages(self._wire.edits.ListEditEvaluations, listed(edit))
        return tuple([evaluation(one) async for page in found for one in page.evaluations])
