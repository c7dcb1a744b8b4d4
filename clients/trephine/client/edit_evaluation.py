"""Measuring stored edits beside matched random features, another layer and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trephine.client.decoding import decode
from trephine.client.operations import OnProgress, Operation
from trephine.client.paging import pages
from trephine.client.requests import edit_name, fresh_id, resource
from trephine.client.sendable import sendable
from trephine.client.types import Edit, EditEvaluation, EvaluationSet
from trephine.client.wire import Wire
from trephine.v1 import edit_evaluations_pb2 as pb

_CONTROLS = ("wrong_layer_sets", "factor", "tokens", "retain_tokens")
_BOUNDS = ("min_log_odds", "min_kl", "max_retain_kl", "max_accuracy_drop")


class EditEvaluations:
    """The part of the edits' surface that measures."""

    _wire: Wire

    def evaluate(
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
        return self.start_evaluate(edit, sets, **options).result(on_progress=on_progress)

    def start_evaluate(
        self, edit: Edit | str, sets: Sequence[EvaluationSet], **options: Any
    ) -> Operation[EditEvaluation]:
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
        message = self._wire.call(self._wire.edits.EvaluateEdit, request(edit, sets, **options))
        return Operation(self._wire, message, evaluation)

    def predict_evaluation(
        self, edit: Edit | str, sets: Sequence[EvaluationSet], **options: Any
    ) -> EditEvaluation:
        """Check an evaluation and say what it would take: `seconds` and `peak_extra_bytes`."""
        asked = request(edit, sets, validate_only=True, **options)
        message = self._wire.call(self._wire.edits.EvaluateEdit, asked)
        return Operation(self._wire, message, evaluation).result()

    def evaluation(self, name: str) -> EditEvaluation:
        """One evaluation by name."""
        return evaluation(self._wire.call(self._wire.edits.GetEditEvaluation, named(name)))

    def evaluations(self, edit: Edit | str) -> tuple[EditEvaluation, ...]:
        """Evaluations of an edit, of one version if it is named, newest first."""
        found = pages(self._wire, self._wire.edits.ListEditEvaluations, listed(edit))
        return tuple(evaluation(one) for page in found for one in page.evaluations)


def evaluation(message: Any) -> EditEvaluation:
    """A finished evaluation."""
    return decode(EditEvaluation, message)


@sendable
def named(name: str) -> pb.GetEditEvaluationRequest:
    """Ask for one evaluation."""
    return pb.GetEditEvaluationRequest(name=name)


@sendable
def listed(edit: Edit | str) -> pb.ListEditEvaluationsRequest:
    """Ask for an edit's evaluations."""
    return pb.ListEditEvaluationsRequest(edit=edit_name(edit))


@sendable
def request(
    edit: Edit | str,
    sets: Sequence[EvaluationSet],
    *,
    model: str | None = None,
    controls: int | None = None,
    prompts: Sequence[str] = (),
    shots: Sequence[int] = (),
    always_prompt: bool = False,
    prompting: bool = True,
    request_id: str | None = None,
    validate_only: bool = False,
    **options: Any,
) -> pb.EvaluateEditRequest:
    """Measure an edit. `options` are fields of controls, bounds and the request; None leaves one unset."""
    given = {name: value for name, value in options.items() if value is not None}
    drawn = {name: given.pop(name) for name in _CONTROLS if name in given}
    bounds = {name: given.pop(name) for name in _BOUNDS if name in given}
    asked = pb.PromptingOptions(prompts=prompts, shots=shots, always=always_prompt)
    return pb.EvaluateEditRequest(
        edit=edit_name(edit),
        sets=[_set(one) for one in sets],
        model=resource("models", model) if model else None,
        controls=pb.FeatureControls(sets=controls, **drawn),
        bounds=pb.EvaluationBounds(**bounds),
        prompting=asked if prompting else None,
        without_prompting=not prompting,
        request_id=fresh_id(request_id),
        validate_only=validate_only,
        **given,
    )


def _set(one: EvaluationSet) -> pb.EvaluationSet:
    return pb.EvaluationSet(
        name=one.name,
        role=pb.EvaluationRole.Value(f"EVALUATION_ROLE_{one.role.value.upper()}"),
        texts=one.texts,
        items=[
            pb.ChoiceItem(prompt=item.prompt, choices=item.choices, answer=item.answer) for item in one.items
        ],
    )
