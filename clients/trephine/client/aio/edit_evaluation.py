"""Measuring stored edits beside matched random features, another layer and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trephine.client.aio.operations import AsyncOperation
from trephine.client.aio.wire import AsyncWire
from trephine.client.edit_evaluation_requests import listed, named, request
from trephine.client.results import edit_evaluation_of
from trephine.client.types import Edit, EditEvaluation, EvaluationSet
from trephine.client.watches import OnProgress


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
        """What an edit does to its targets and to the rest, and what controls do; kept with the edit.

        Args:
            edit: The edit, which is that very version, or its name, which is the latest.
            sets: At least one target set; without a retain set the built-in text is one.
            on_progress: Called with every step.
            options: Those of `start_evaluate`.
        """
        started = await self.start_evaluate(edit, sets, **options)
        return await started.result(on_progress=on_progress)

    async def start_evaluate(
        self, edit: Edit | str, sets: Sequence[EvaluationSet], **options: Any
    ) -> AsyncOperation[EditEvaluation]:
        """Start an evaluation.

        Args:
            edit: The edit or its name.
            sets: Texts and items, by role.
            options: `model` (unset: the edit's own); `controls` is the number of random sets (unset 99),
                `wrong_layer_sets` (19) and `factor` (2) say how they are drawn, `tokens` (256) and
                `retain_tokens` (as `tokens`; 0 for none) how much of every set they run on; `prompts` are put
                in front, `shots` (1, 2, 4) are solved examples in front, `always_prompt` tries them for
                edits that only remove, `prompting=False` for none; `min_log_odds` (0.5), `min_kl` (0.01),
                `max_retain_kl` (0.1), `max_accuracy_drop` (0.05) are the bounds; `resamples` (1000), `seed`
                (0), `request_id`.
        """
        message = await self._wire.call(self._wire.edits.EvaluateEdit, request(edit, sets, **options))
        return AsyncOperation(self._wire, message, edit_evaluation_of)

    async def predict_evaluation(
        self, edit: Edit | str, sets: Sequence[EvaluationSet], **options: Any
    ) -> EditEvaluation:
        """Check an evaluation and say what it would take: `seconds` and `peak_extra_bytes`."""
        asked = request(edit, sets, validate_only=True, **options)
        message = await self._wire.call(self._wire.edits.EvaluateEdit, asked)
        return await AsyncOperation(self._wire, message, edit_evaluation_of).result()

    async def evaluation(self, name: str) -> EditEvaluation:
        """One evaluation by name."""
        return edit_evaluation_of(await self._wire.call(self._wire.edits.GetEditEvaluation, named(name)))

    async def evaluations(self, edit: Edit | str) -> tuple[EditEvaluation, ...]:
        """Evaluations of an edit, of one version if it is named, newest first."""
        found = self._wire.pages(self._wire.edits.ListEditEvaluations, listed(edit))
        return tuple([edit_evaluation_of(one) async for page in found for one in page.evaluations])
