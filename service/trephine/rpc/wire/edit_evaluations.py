"""Evaluations of edits."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from trephine.app.edits.edit_evaluations import StoredEditEvaluation
from trephine.app.jobs.costs import Cost
from trephine.app.jobs.requests import EvaluateEditRequest
from trephine.domain import edit_evaluation as domain
from trephine.domain.errors import InvalidRequestError
from trephine.domain.models import ModelInfo
from trephine.rpc.wire.common import feature_to_wire, figure_to_wire, version_to_wire
from trephine.rpc.wire.edits import edit_reference
from trephine.rpc.wire.fields import at_least, clean, finite, one_of, prompt, qualified, required, within
from trephine.rpc.wire.fields import resource_id as checked_resource_id
from trephine.rpc.wire.interventions import applied_to_wire
from trephine.rpc.wire.standings import STANDINGS
from trephine.v1 import edit_evaluations_pb2 as pb

_ROLES: dict[pb.EvaluationRole.ValueType, domain.SetRole] = {
    pb.EVALUATION_ROLE_TARGET: domain.SetRole.TARGET,
    pb.EVALUATION_ROLE_RETAIN: domain.SetRole.RETAIN,
}
_ROLE_NUMBERS = {role: number for number, role in _ROLES.items()}
_ARMS = {arm: pb.EvaluationArm.Value(f"EVALUATION_ARM_{arm.name}") for arm in domain.EvaluationArm}
_VERDICTS = {word: pb.EditVerdict.Value(f"EDIT_VERDICT_{word.name}") for word in domain.EditVerdict}
_COUNTS = {"sets": 1, "wrong_layer_sets": 0, "tokens": 1, "retain_tokens": 0}
_BOUNDS = ("min_log_odds", "min_kl", "max_retain_kl", "max_accuracy_drop")


def evaluate_from_wire(request: pb.EvaluateEditRequest) -> EvaluateEditRequest:
    """Read a request, with the defaults that the contract states.

    Raises:
        TooFewItemsError: If a set has fewer texts or items than an interval needs.
        InvalidRequestError: Naming the field.
    """
    if request.without_prompting and request.HasField("prompting"):
        raise InvalidRequestError("give prompts, or leave them out", field="without_prompting")
    resamples = at_least(request.resamples, 100, "resamples") if request.HasField("resamples") else 1000
    return EvaluateEditRequest(
        edit=edit_reference(request.edit, "edit"),
        sets=tuple(_set_from_wire(one, f"sets[{place}]") for place, one in enumerate(request.sets)),
        model=checked_resource_id(request.model, "models", "model") if request.HasField("model") else None,
        controls=_controls_from_wire(request.controls),
        bounds=_bounds_from_wire(request.bounds),
        prompting=None if request.without_prompting else _prompting_from_wire(request.prompting),
        resamples=resamples,
        seed=request.seed,
    )


def evaluation_to_wire(stored: StoredEditEvaluation) -> pb.EditEvaluation:
    """Write an evaluation."""
    one = stored.evaluation
    return pb.EditEvaluation(
        name=clean(stored.name),
        edit=qualified("edits", f"{one.edit}@{one.version}"),
        content_hash=clean(one.content_hash),
        verdict=_VERDICTS[one.verdict],
        why=clean(one.why),
        would_decide=clean(one.would_decide),
        sets=[_set_to_wire(result) for result in one.sets],
        matching=_matching_to_wire(one.matching),
        prompting=None if one.prompting is None else _prompting_to_wire(one.prompting),
        applied=applied_to_wire(one.applied),
        bounds=_bounds_to_wire(one.bounds),
        caveats=[clean(caveat) for caveat in one.caveats],
        resamples=one.resamples,
        seed=one.seed,
        seconds=one.seconds,
        version=version_to_wire(one.model, one.weight_hash),
        create_time=clean(stored.create_time),
    )


def predicted_to_wire(command: domain.EvaluateEdit, info: ModelInfo, cost: Cost) -> pb.EditEvaluation:
    """Write what an evaluation would take."""
    return pb.EditEvaluation(
        edit=qualified("edits", command.edit.reference),
        content_hash=clean(command.edit.content_hash),
        bounds=_bounds_to_wire(command.bounds),
        resamples=command.resamples,
        seed=command.seed,
        seconds=cost.seconds,
        peak_extra_bytes=cost.memory_bytes,
        version=version_to_wire(info.name, info.weight_hash),
    )


def _set_from_wire(message: pb.EvaluationSet, field: str) -> domain.EvaluationSet:
    with within(field):
        return domain.EvaluationSet(
            name=required(message.name, "name"),
            role=one_of(message.role, _ROLES, "role"),
            texts=tuple(prompt(text, f"texts[{place}]") for place, text in enumerate(message.texts)),
            items=tuple(_item_from_wire(item, f"items[{place}]") for place, item in enumerate(message.items)),
        )


def _item_from_wire(message: pb.ChoiceItem, field: str) -> domain.ChoiceItem:
    with within(field):
        return domain.ChoiceItem(
            prompt=prompt(message.prompt),
            choices=tuple(
                prompt(choice, f"choices[{place}]") for place, choice in enumerate(message.choices)
            ),
            answer=message.answer,
        )


def _controls_from_wire(message: pb.FeatureControls) -> domain.FeatureControls:
    with within("controls"):
        given: dict[str, Any] = {
            name: at_least(getattr(message, name), least, name)
            for name, least in _COUNTS.items()
            if _has(message, name)
        }
        if message.HasField("factor"):
            given["factor"] = finite(message.factor, "factor")
            if message.factor <= 1:
                raise InvalidRequestError(f"factor must be above 1, got {message.factor:g}", field="factor")
    return domain.FeatureControls(**given)


def _bounds_from_wire(message: pb.EvaluationBounds) -> domain.EvaluationBounds:
    given: dict[str, float] = {}
    with within("bounds"):
        for name in _BOUNDS:
            if _has(message, name):
                given[name] = finite(getattr(message, name), name)
                if given[name] <= 0:
                    raise InvalidRequestError(f"{name} must be above 0, got {given[name]:g}", field=name)
    return domain.EvaluationBounds(**given)


def _prompting_from_wire(message: pb.PromptingOptions) -> domain.PromptingOptions:
    with within("prompting"):
        shots = tuple(at_least(count, 1, f"shots[{place}]") for place, count in enumerate(message.shots))
        prompts = tuple(prompt(text, f"prompts[{place}]") for place, text in enumerate(message.prompts))
    default = domain.PromptingOptions()
    return domain.PromptingOptions(prompts=prompts, shots=shots or default.shots, always=message.always)


def _has(message: Any, field: str) -> bool:
    return bool(message.HasField(field))


def _set_to_wire(result: domain.SetResult) -> pb.EvaluatedSet:
    return pb.EvaluatedSet(
        name=clean(result.name),
        role=_ROLE_NUMBERS[result.role],
        units=result.units,
        tokens=result.tokens,
        sha256=clean(result.sha256),
        arms=[
            pb.ArmResult(arm=_ARMS[one.arm], figures=_each(one.figures, figure_to_wire))
            for one in result.arms
        ],
        controls=[_comparison_to_wire(one) for one in result.controls],
    )


def _comparison_to_wire(one: domain.ControlComparison) -> pb.ControlComparison:
    return pb.ControlComparison(
        arm=_ARMS[one.arm],
        statistic=clean(one.statistic),
        effect=one.effect,
        values=one.values,
        p_value=one.p_value,
        adjusted_p_value=one.adjusted_p_value,
        units=one.units,
        tokens=one.tokens,
        reached=one.reached,
        quantiles=one.quantiles,
    )


def _matching_to_wire(matching: domain.ControlMatching) -> pb.ControlMatching:
    return pb.ControlMatching(
        matched=matching.matched,
        unmatched=[
            pb.UncontrolledFeature(feature=feature_to_wire(one.feature), candidates=one.candidates)
            for one in matching.unmatched
        ],
        factor=matching.factor,
        wrong_layer_factor=matching.wrong_layer_factor,
        wrong_layers=_each(matching.wrong_layers, clean),
        notes=_each(matching.notes, clean),
    )


def _prompting_to_wire(result: domain.PromptingResult) -> pb.PromptingResult:
    return pb.PromptingResult(
        candidates=[
            pb.PromptCandidate(label=clean(one.label), tokens=one.tokens, behaviour=one.behaviour)
            for one in result.candidates
        ],
        chosen=clean(result.chosen),
        plain_behaviour=result.plain_behaviour,
        edit_behaviour=result.edit_behaviour,
        strength=result.strength,
        differences=_each(result.differences, figure_to_wire),
        standing=STANDINGS[result.standing],
        why=clean(result.why),
    )


def _bounds_to_wire(bounds: domain.EvaluationBounds) -> pb.EvaluationBounds:
    return pb.EvaluationBounds(**{name: getattr(bounds, name) for name in _BOUNDS})


def _each(values: Iterable[Any], write: Callable[[Any], Any]) -> list[Any]:
    return [write(value) for value in values]
