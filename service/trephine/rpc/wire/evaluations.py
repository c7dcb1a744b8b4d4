"""Evaluations of replacement sets."""

from __future__ import annotations

from trephine.app.jobs.costs import Cost
from trephine.app.jobs.requests import EvaluateSetRequest
from trephine.app.sets.evaluations import EvaluationFormat, StoredEvaluation
from trephine.domain import replacements as domain
from trephine.domain.errors import InvalidRequestError
from trephine.domain.models import ModelInfo
from trephine.rpc.wire.artifacts import digest_from_wire
from trephine.rpc.wire.common import figure_to_wire
from trephine.rpc.wire.fields import at_least, clean, one_of, qualified
from trephine.rpc.wire.replacements import info_to_wire, loaded_set_name
from trephine.v1 import replacement_service_pb2 as pb

DICTIONARIES: dict[pb.Dictionary.ValueType, domain.Dictionary] = {
    pb.DICTIONARY_GIVEN: domain.Dictionary.GIVEN,
    pb.DICTIONARY_RANDOM: domain.Dictionary.RANDOM,
    pb.DICTIONARY_FROZEN_DECODER: domain.Dictionary.FROZEN_DECODER,
    pb.DICTIONARY_FROZEN_ENCODER: domain.Dictionary.FROZEN_ENCODER,
}
_DICTIONARY_NUMBERS = {dictionary: number for number, dictionary in DICTIONARIES.items()}
_FORMATS: dict[pb.EvaluationFormat.ValueType, EvaluationFormat] = {
    pb.EVALUATION_FORMAT_JSON: "json",
    pb.EVALUATION_FORMAT_CSV: "csv",
    pb.EVALUATION_FORMAT_HTML: "html",
}
_ALL = tuple(one for one in domain.Dictionary if one is not domain.Dictionary.GIVEN)
BUILT_IN = "built-in"


def evaluate_from_wire(request: pb.EvaluateReplacementSetRequest) -> EvaluateSetRequest:
    """Read a request for an evaluation, with the defaults that the contract states.

    Raises:
        InvalidRequestError: Naming the field.
    """
    model, name = loaded_set_name(request.name)
    for index, layer in enumerate(request.layers):
        at_least(layer, 0, f"layers[{index}]")
    has = request.HasField
    command = domain.EvaluateReplacementSet(
        name=name,
        text="",
        text_name=request.text_name or ("text" if request.text else BUILT_IN),
        context_tokens=request.context_tokens if has("context_tokens") else 128,
        max_contexts=request.max_contexts if has("max_contexts") else 32,
        layers=tuple(dict.fromkeys(request.layers)),
        controls=_controls(request),
        bootstrap=request.bootstrap if has("bootstrap") else 1000,
        perturbations=request.perturbations if has("perturbations") else 32,
        seed=request.seed,
    )
    return EvaluateSetRequest(
        model=model,
        command=command,
        text=_artifact(request.text, "text"),
        control_text=_artifact(request.control_text, "control_text"),
    )


def evaluation_to_wire(stored: StoredEvaluation) -> pb.ReplacementEvaluation:
    """Write a finished evaluation."""
    found = stored.evaluation
    return pb.ReplacementEvaluation(
        name=qualified("evaluations", stored.name),
        replacement_set=info_to_wire(found.replacement),
        layers=[_layer_to_wire(score) for score in found.layers],
        spliced=[_spliced_to_wire(score) for score in found.spliced],
        depths=[_depth_to_wire(row) for row in found.depths],
        claims=[_claim_to_wire(claim) for claim in found.claims],
        text=clean(found.text),
        tokens=found.tokens,
        contexts=found.contexts,
        seed=found.seed,
        caveats=[clean(caveat) for caveat in found.caveats],
        seconds=found.seconds,
        create_time=clean(stored.create_time),
    )


def checked_to_wire(
    request: EvaluateSetRequest, info: domain.ReplacementSetInfo, model: ModelInfo, cost: Cost
) -> pb.ReplacementEvaluation:
    """Write what is known before anything is measured; time and memory are predictions."""
    return pb.ReplacementEvaluation(
        replacement_set=info_to_wire(info),
        text=clean(request.command.text_name),
        seed=request.command.seed,
        seconds=cost.seconds,
        peak_extra_bytes=cost.memory_bytes,
    )


def format_from_wire(number: pb.EvaluationFormat.ValueType) -> EvaluationFormat:
    """Read a format; unspecified is refused."""
    return one_of(number, _FORMATS, "format")


def _controls(request: pb.EvaluateReplacementSetRequest) -> tuple[domain.Dictionary, ...]:
    if request.without_controls:
        if request.controls:
            raise InvalidRequestError("name controls, or leave them out, not both", field="without_controls")
        return ()
    chosen = [one_of(one, DICTIONARIES, f"controls[{index}]") for index, one in enumerate(request.controls)]
    if domain.Dictionary.GIVEN in chosen:
        raise InvalidRequestError(
            "the set is no control of itself", field=f"controls[{chosen.index(domain.Dictionary.GIVEN)}]"
        )
    return tuple(dict.fromkeys(chosen)) or _ALL


def _artifact(name: str, field: str) -> str:
    return f"artifacts/{digest_from_wire(name, field)}" if name else ""


def _layer_to_wire(score: domain.LayerScore) -> pb.LayerScore:
    return pb.LayerScore(
        layer=score.layer,
        dictionary=_DICTIONARY_NUMBERS[score.dictionary],
        fvu=figure_to_wire(score.fvu),
        l0=figure_to_wire(score.l0),
        dead_share=score.dead_share,
        ce_score=figure_to_wire(score.ce_score),
        ce_score_zero=figure_to_wire(score.ce_score_zero),
        kl_score=figure_to_wire(score.kl_score),
        kl_score_zero=figure_to_wire(score.kl_score_zero),
        top1_agreement=figure_to_wire(score.top1_agreement),
        error_share=None if score.error_share is None else figure_to_wire(score.error_share),
    )


def _spliced_to_wire(score: domain.SplicedScore) -> pb.SplicedScore:
    return pb.SplicedScore(
        dictionary=_DICTIONARY_NUMBERS[score.dictionary],
        ce_plain=figure_to_wire(score.ce_plain),
        ce_spliced=figure_to_wire(score.ce_spliced),
        ce_mean_ablated=figure_to_wire(score.ce_mean_ablated),
        ce_zero_ablated=figure_to_wire(score.ce_zero_ablated),
        ce_score=figure_to_wire(score.ce_score),
        kl=figure_to_wire(score.kl),
        kl_score=figure_to_wire(score.kl_score),
        top1_agreement=figure_to_wire(score.top1_agreement),
        error_share=figure_to_wire(score.error_share),
        ce_score_zero=figure_to_wire(score.ce_score_zero),
        kl_score_zero=figure_to_wire(score.kl_score_zero),
        fvu=None if score.fvu is None else figure_to_wire(score.fvu),
        l0=None if score.l0 is None else figure_to_wire(score.l0),
        dead_share=score.dead_share,
        layers=[_spliced_layer_to_wire(layer) for layer in score.layers],
    )


def _spliced_layer_to_wire(layer: domain.SplicedLayer) -> pb.SplicedLayer:
    return pb.SplicedLayer(
        layer=layer.layer,
        fvu=figure_to_wire(layer.fvu),
        l0=figure_to_wire(layer.l0),
        dead_share=layer.dead_share,
    )


def _depth_to_wire(row: domain.DepthFaithfulness) -> pb.DepthFaithfulness:
    return pb.DepthFaithfulness(
        depth=row.depth,
        cosine=figure_to_wire(row.cosine),
        nmse=figure_to_wire(row.nmse),
        pairs=row.pairs,
        dictionary=_DICTIONARY_NUMBERS[row.dictionary],
    )


def _claim_to_wire(claim: domain.Claim) -> pb.Claim:
    return pb.Claim(
        figure=clean(claim.figure),
        control=_DICTIONARY_NUMBERS[claim.control],
        beats=claim.beats,
        difference=figure_to_wire(claim.difference),
    )
