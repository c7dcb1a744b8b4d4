"""Requests to measure stored edits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trephine.client.requests import edit_name, fresh_id, resource
from trephine.client.sendable import listed as several
from trephine.client.sendable import sendable
from trephine.client.types import Edit, EvaluationSet
from trephine.v1 import edit_evaluations_pb2 as pb

_CONTROLS = ("wrong_layer_sets", "factor", "tokens", "retain_tokens")
_BOUNDS = ("min_log_odds", "min_kl", "max_retain_kl", "max_accuracy_drop")


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
        texts=several(one.texts, "texts"),
        items=[
            pb.ChoiceItem(prompt=item.prompt, choices=several(item.choices, "choices"), answer=item.answer)
            for item in one.items
        ],
    )
