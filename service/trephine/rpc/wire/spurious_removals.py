"""Spurious features of decisions: what is asked, and the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from trephine.app.jobs.costs import Cost
from trephine.app.jobs.requests import ExportClassifierRequest, RemoveSpuriousRequest
from trephine.app.spurious.spurious_removals import COLLECTION, StoredRemoval
from trephine.domain import spurious_removal as domain
from trephine.domain.classifier_exports import ClassifierExport
from trephine.domain.dataset_circuits import Estimator
from trephine.domain.errors import EmptyPromptError, InvalidRequestError
from trephine.domain.models import ModelInfo
from trephine.domain.sites import NEURONS
from trephine.domain.spurious_arms import Arm
from trephine.domain.spurious_texts import AttributeText, LabelledText, Swap
from trephine.rpc.wire.common import feature_from_wire, feature_to_wire, figure_to_wire, version_to_wire
from trephine.rpc.wire.dataset_circuits import ESTIMATORS
from trephine.rpc.wire.fields import clean, named, one_of, prompt, qualified, required, resource_id, within
from trephine.rpc.wire.interventions import intervention_to_wire
from trephine.rpc.wire.spurious_heads import decision_from_wire, decision_to_wire
from trephine.rpc.wire.spurious_options import options_to_wire
from trephine.rpc.wire.spurious_outcomes import outcome_to_wire
from trephine.v1 import spurious_removal_pb2 as pb

_ESTIMATOR_NUMBERS = {one: number for number, one in ESTIMATORS.items() if number}
_STANDINGS = {one: pb.FeatureStanding.Value(f"FEATURE_STANDING_{one.name}") for one in domain.Standing}
_JUDGES = {one: pb.FeatureJudge.Value(f"FEATURE_JUDGE_{one.name}") for one in domain.Judge}
_ARMS = {one: pb.RemovalArm.Value(f"REMOVAL_ARM_{one.name}") for one in Arm}
_BUDGET = ("candidates", "exact", "effect_texts", "fit_texts", "random_sets")
_FEATURE_BYTES = 6 << 20
"""Of the features of one report: an answer that the transport refuses would lose the work of an hour."""
_RULES = ("spurious_above", "task_below", "false_discoveries", "clusters")


def remove_from_wire(request: pb.RemoveSpuriousFeaturesRequest) -> RemoveSpuriousRequest:
    """Read a request, with the defaults that the contract states.

    Raises:
        TrephineError: Naming the field.
    """
    return RemoveSpuriousRequest(
        model=resource_id(request.model, "models", "model"),
        command=_command(request),
        edit_id=request.edit_id,
        author=request.author,
        unproven=request.unproven,
    )


def _command(request: pb.RemoveSpuriousFeaturesRequest) -> domain.RemoveSpuriousFeatures:
    decision = decision_from_wire(request.decision)
    given: dict[str, Any] = {
        name: getattr(request, name) for name in ("steps", "resamples", "seed") if _has(request, name)
    }
    judging = domain.JudgingRules(**_given(request.judging, _RULES))
    budget = _given(request.budget, _BUDGET)
    if request.budget.counts:
        budget["counts"] = tuple(request.budget.counts)
    return domain.RemoveSpuriousFeatures(
        training=_texts(request.training, "training"),
        validation=_texts(request.validation, "validation"),
        test=_texts(request.test, "test"),
        attribute_texts=tuple(_example(one, place) for place, one in enumerate(request.attribute_texts)),
        neutral_examples=request.neutral_examples,
        attribute_name=request.attribute_name,
        swaps=tuple(_swap(one, place) for place, one in enumerate(request.swaps)),
        decision=decision,
        replacement=request.replacement or NEURONS,
        layers=tuple(request.layers) or None,
        estimator=one_of(request.estimator, ESTIMATORS, "estimator") or Estimator.ATTRIBUTION_PATCHING,
        judging=judging,
        budget=domain.RemovalBudget(**budget),
        refit=not request.without_refit,
        erase=not request.without_erasure,
        overrides=tuple(_override(one, place) for place, one in enumerate(request.overrides)),
        **given,
    )


def _texts(messages: Iterable[pb.LabelledText], split: str) -> tuple[LabelledText, ...]:
    return tuple(_text(one, f"{split}[{place}]") for place, one in enumerate(messages))


def _text(message: pb.LabelledText, field: str) -> LabelledText:
    with within(field):
        environment = named(message.environment, "environment") if _has(message, "environment") else None
        return LabelledText(
            text=_written(message.text, "text"),
            label=named(message.label, "label"),
            attribute=named(message.attribute, "attribute") if _has(message, "attribute") else None,
            twin=_written(message.twin, "twin") if _has(message, "twin") else None,
            environment=environment,
            pair=named(message.pair, "pair") if _has(message, "pair") else None,
        )


def _written(text: str, field: str) -> str:
    """Return a text that is more than blanks: of those nothing tells the label."""
    if text and not text.strip():
        raise EmptyPromptError(f"{field} holds blanks alone; write the text, or leave it out", field=field)
    return prompt(text, field)


def _example(message: pb.AttributeText, place: int) -> AttributeText:
    with within(f"attribute_texts[{place}]"):
        return AttributeText(
            text=_written(message.text, "text"), attribute=named(message.attribute, "attribute")
        )


def _swap(message: pb.WordSwap, place: int) -> Swap:
    field = f"swaps[{place}]"
    return Swap(
        first=required(message.first, f"{field}.first"), second=required(message.second, f"{field}.second")
    )


def _override(message: pb.FeatureOverride, place: int) -> domain.Override:
    with within(f"overrides[{place}]"):
        if not message.HasField("feature"):
            raise InvalidRequestError("feature is required", field="feature")
        return domain.Override(
            feature=feature_from_wire(message.feature),
            remove=message.remove,
            reason=required(message.reason.strip(), "reason"),
        )


def removal_to_wire(stored: StoredRemoval, *, whole: bool = True) -> pb.SpuriousRemoval:
    """Write a report; without its features where several are listed.

    Of more features than an answer holds the last ones, which did the least and stay, are left out, and a
    caveat counts them.
    """
    one = stored.found
    features, left = _features(one.features) if whole else ([], 0)
    return pb.SpuriousRemoval(
        name=clean(stored.name),
        edit=qualified("edits", stored.edit) if stored.edit else "",
        labels=[clean(label) for label in one.labels],
        attributes=[clean(attribute) for attribute in one.attributes],
        pairing=clean(one.pairing),
        decision=decision_to_wire(one.decision),
        replacement=clean(one.replacement),
        estimator=_ESTIMATOR_NUMBERS[one.estimator],
        judges=[_JUDGES[judge] for judge in one.judges],
        considered=one.considered,
        features=features,
        choices=[
            pb.RemovalChoice(
                count=point.count,
                criterion=point.criterion,
                ambiguous_accuracy=point.ambiguous_accuracy,
                leak=point.leak,
                erased=point.erased,
                error=point.error,
                taken=point.taken,
                trained=point.trained,
            )
            for point in one.choices
        ],
        criterion=clean(one.criterion),
        chosen=one.chosen,
        why=clean(one.why),
        arms=[
            pb.RemovalArmResult(
                arm=_ARMS[arm.arm], figures=[figure_to_wire(figure) for figure in arm.figures]
            )
            for arm in one.arms
        ],
        scr=one.scores.scr,
        tpp=one.scores.tpp,
        interventions=[intervention_to_wire(each) for each in one.interventions] if whole else [],
        texts=one.texts,
        caveats=[clean(caveat) for caveat in (*one.caveats, *_left_out(left))],
        seconds=one.seconds,
        version=version_to_wire(one.model, one.weight_hash),
        seed=one.seed,
        create_time=clean(stored.create_time),
        outcome=outcome_to_wire(one.outcome),
        ships=_ARMS[one.ships],
        options=options_to_wire(one.options) if whole and one.options else None,
    )


def _features(found: Sequence[domain.JudgedFeature]) -> tuple[list[pb.JudgedFeature], int]:
    """Write features as long as there is room; return how many are left."""
    written, size = list[pb.JudgedFeature](), 0
    for feature in found:
        message = _feature_to_wire(feature)
        size += message.ByteSize()
        if size > _FEATURE_BYTES:
            break
        written.append(message)
    return written, len(found) - len(written)


def _left_out(count: int) -> tuple[str, ...]:
    if not count:
        return ()
    return (
        f"{count} judged features of the smallest effects are not listed: an answer holds no more. Judge "
        "fewer candidates to see all of them",
    )


def predicted_to_wire(
    command: domain.RemoveSpuriousFeatures, info: ModelInfo, cost: Cost
) -> pb.SpuriousRemoval:
    """Write what a removal would take."""
    return pb.SpuriousRemoval(
        labels=[clean(label) for label in command.labels],
        decision=decision_to_wire(command.decision),
        replacement=clean(command.replacement),
        estimator=_ESTIMATOR_NUMBERS[command.estimator],
        texts=[len(split) for split in command.splits.values()],
        seconds=cost.seconds,
        peak_extra_bytes=cost.memory_bytes,
        version=version_to_wire(info.name, info.weight_hash),
        seed=command.seed,
    )


def _feature_to_wire(one: domain.JudgedFeature) -> pb.JudgedFeature:
    return pb.JudgedFeature(
        feature=feature_to_wire(one.feature),
        standing=_STANDINGS[one.standing],
        score=one.score,
        why=clean(one.why),
        effect=one.effect,
        exact=one.exact,
        attribute_probe=one.attribute_probe,
        evidence=[
            pb.JudgeEvidence(
                judge=_JUDGES[said.judge],
                share=said.share,
                attribute_effect=said.attribute_effect,
                label_effect=said.label_effect,
                p_value=said.p_value,
                standing=_STANDINGS[said.standing],
            )
            for said in one.evidence
        ],
        firings=[
            pb.FeatureFiring(
                text=clean(firing.text),
                token=clean(firing.token),
                activation=firing.activation,
                label=clean(firing.label),
                attribute=None if firing.attribute is None else clean(firing.attribute),
            )
            for firing in one.firings
        ],
        override=clean(one.override),
        removed=one.removed,
    )


def classifier_from_wire(request: pb.ExportClassifierRequest) -> ExportClassifierRequest:
    """Read what is to be published.

    Raises:
        InvalidRequestError: Naming the field.
    """
    return ExportClassifierRequest(
        removal=resource_id(request.removal, COLLECTION, "removal"),
        export=resource_id(request.export, "exports", "export") if request.HasField("export") else None,
        classifier_id=required(request.classifier_id, "classifier_id"),
        texts=tuple(prompt(text, f"texts[{place}]") for place, text in enumerate(request.texts)),
    )


def classifier_to_wire(one: ClassifierExport) -> pb.ClassifierExport:
    """Write a published classifier."""
    return pb.ClassifierExport(
        name=qualified("classifiers", one.name),
        removal=clean(one.removal),
        export=clean(one.export),
        architecture=clean(one.architecture),
        labels=[clean(label) for label in one.labels],
        files={clean(path): digest for path, digest in one.files.items()},
        checked_texts=one.checked_texts,
        largest_difference=one.largest_difference,
        agreeing=one.agreeing,
        sizes={clean(path): size for path, size in one.sizes.items()},
        threshold=one.threshold,
    )


def _given(message: Any, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(message, name) for name in names if _has(message, name)}


def _has(message: Any, field: str) -> bool:
    return bool(message.HasField(field))
