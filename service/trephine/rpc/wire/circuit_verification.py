"""Verifications of circuits."""

from __future__ import annotations

from trephine.app.circuits.circuit_verification import COLLECTION, StoredVerification
from trephine.app.circuits.circuits import StoredCircuit
from trephine.app.jobs.costs import Cost
from trephine.app.jobs.requests import VerifyRequest
from trephine.domain import verification as domain
from trephine.domain.models import ModelInfo
from trephine.rpc.wire.circuits import share
from trephine.rpc.wire.common import figure_to_wire, version_to_wire
from trephine.rpc.wire.fields import at_least, clean, one_of, prompt, qualified, resource_id
from trephine.rpc.wire.interventions import ERROR_TERMS
from trephine.rpc.wire.standings import STANDINGS
from trephine.v1 import circuit_verification_pb2 as pb

_SUBSTITUTES: dict[pb.Substitute.ValueType, domain.Substitute] = {
    pb.SUBSTITUTE_ZERO: domain.Substitute.ZERO,
    pb.SUBSTITUTE_MEAN: domain.Substitute.MEAN,
    pb.SUBSTITUTE_RESAMPLE: domain.Substitute.RESAMPLE,
}
_SUBSTITUTE_NUMBERS = {kind: number for number, kind in _SUBSTITUTES.items()}
_COUNTS = ("nodes", "groups", "depth_nodes", "random_circuits", "adversary_steps", "bootstrap")


def verify_from_wire(request: pb.VerifyCircuitRequest) -> VerifyRequest:
    """Read a request, with the defaults that the contract states.

    Raises:
        InvalidRequestError: Naming the field.
    """
    given = {name: getattr(request, name) for name in (*_COUNTS, "control", "seed") if _has(request, name)}
    counterfactual = None
    if request.HasField("counterfactual"):
        counterfactual = prompt(request.counterfactual, "counterfactual")
    return VerifyRequest(
        circuit=resource_id(request.circuit, "circuits", "circuit"),
        model=resource_id(request.model, "models", "model") if request.model else "",
        node_threshold=_share(request, "node_threshold"),
        edge_threshold=_share(request, "edge_threshold"),
        supernodes=tuple(
            tuple(at_least(node, 0, f"supernodes[{place}]") for node in one.nodes)
            for place, one in enumerate(request.supernodes)
        ),
        options=domain.VerificationOptions(
            counterfactual=counterfactual,
            substitutes=_substitutes(request),
            error_term=one_of(request.error_term, ERROR_TERMS, "error_term"),
            **given,
        ),
    )


def _has(request: pb.VerifyCircuitRequest, field: str) -> bool:
    return bool(request.HasField(field))  # type: ignore[arg-type]  # the stub lists literals


def _share(request: pb.VerifyCircuitRequest, field: str) -> float | None:
    return share(getattr(request, field), field) if _has(request, field) else None


def _substitutes(request: pb.VerifyCircuitRequest) -> tuple[domain.Substitute, ...]:
    named = [
        one_of(number, _SUBSTITUTES, f"substitutes[{place}]")
        for place, number in enumerate(request.substitutes)
    ]
    if named:
        return tuple(dict.fromkeys(named))
    both = (domain.Substitute.ZERO, domain.Substitute.MEAN)
    return (*both, domain.Substitute.RESAMPLE) if request.HasField("counterfactual") else both


def verification_to_wire(stored: StoredVerification, *, measurements: bool = True) -> pb.CircuitVerification:
    """Write a finished verification, with every ablation or without."""
    report = stored.report
    message = pb.CircuitVerification(
        name=qualified(COLLECTION, stored.name),
        circuit=qualified("circuits", stored.circuit),
        prompt=clean(report.prompt),
        target=clean(report.target),
        version=version_to_wire(report.model, report.weight_hash),
        given=_examination_to_wire(report.given),
        control=None if report.control is None else _examination_to_wire(report.control),
        control_note=clean(report.control_note),
        caveats=[clean(caveat) for caveat in report.caveats],
        seed=report.seed,
        seconds=report.seconds,
        peak_extra_bytes=report.peak_extra_bytes,
        create_time=clean(stored.create_time),
        units=clean(report.units),
    )
    if not measurements:
        message.given.ClearField("measurements")
        if message.HasField("control"):
            message.control.ClearField("measurements")
    return message


def predicted_to_wire(
    request: VerifyRequest, stored: StoredCircuit, info: ModelInfo, cost: Cost
) -> pb.CircuitVerification:
    """Write what is known before anything is measured; time and memory are predictions."""
    return pb.CircuitVerification(
        circuit=qualified("circuits", stored.name),
        prompt=clean(stored.circuit.prompt),
        target=clean(stored.circuit.target_label),
        version=version_to_wire(info.name, info.weight_hash),
        seed=request.options.seed,
        seconds=cost.seconds,
        peak_extra_bytes=cost.memory_bytes,
    )


def _examination_to_wire(found: domain.Examination) -> pb.CircuitExamination:
    return pb.CircuitExamination(
        title=clean(found.title),
        replacement=clean(found.replacement),
        graph_features=found.graph_features,
        circuit_features=found.circuit_features,
        first_position=found.first_position,
        baseline=found.baseline,
        agreements=[_agreement_to_wire(one) for one in found.agreements],
        comparisons=[_comparison_to_wire(one) for one in found.comparisons],
        depths=[_depth_to_wire(one) for one in found.depths],
        faithfulness=[_faithfulness_to_wire(one) for one in found.faithfulness],
        worst_case=None if found.worst_case is None else _worst_to_wire(found.worst_case),
        measurements=[_measurement_to_wire(one) for one in found.measurements],
    )


def _agreement_to_wire(one: domain.Agreement) -> pb.VerificationAgreement:
    return pb.VerificationAgreement(
        ablations=clean(one.ablations),
        predictor=one.predictor.value,
        count=one.count,
        spearman=figure_to_wire(one.spearman),
        slope=figure_to_wire(one.slope),
        how=clean(one.how),
    )


def _comparison_to_wire(one: domain.Comparison) -> pb.VerificationComparison:
    return pb.VerificationComparison(
        predictor=one.predictor.value,
        baseline=one.baseline.value,
        difference=figure_to_wire(one.difference),
        standing=STANDINGS[one.standing],
        how=clean(one.how),
    )


def _depth_to_wire(one: domain.DepthAgreement) -> pb.VerificationDepth:
    return pb.VerificationDepth(
        nearest=one.nearest,
        farthest=one.farthest,
        cosine=figure_to_wire(one.cosine),
        nmse=figure_to_wire(one.nmse),
        ablations=one.ablations,
        how=clean(one.how),
    )


def _faithfulness_to_wire(one: domain.Faithfulness) -> pb.CircuitFaithfulness:
    return pb.CircuitFaithfulness(
        substitute=_SUBSTITUTE_NUMBERS[one.substitute],
        baseline=one.baseline,
        empty=one.empty,
        kept=one.kept,
        removed=one.removed,
        faithfulness=one.faithfulness,
        necessity=one.necessity,
        random_circuits=one.random_circuits,
        random_kept=one.random_kept,
        random_removed=one.random_removed,
        p_sufficient=one.p_sufficient,
        p_necessary=one.p_necessary,
        unablated=one.unablated,
        how=clean(one.how),
    )


def _worst_to_wire(one: domain.WorstCase) -> pb.WorstCase:
    return pb.WorstCase(
        substitute=_SUBSTITUTE_NUMBERS[one.substitute],
        baseline=one.baseline,
        kept=one.kept,
        relaxed=one.relaxed,
        rounded=one.rounded,
        random=one.random,
        steps=one.steps,
        random_masks=one.random_masks,
        ablated=one.ablated,
        outside=one.outside,
        how=clean(one.how),
    )


def _measurement_to_wire(one: domain.Measurement) -> pb.VerificationMeasurement:
    return pb.VerificationMeasurement(
        ablations=clean(one.ablations),
        stratum=clean(one.stratum),
        nodes=one.nodes,
        shown=one.shown,
        paths=one.paths,
        measured=one.measured,
    )
