"""Circuits over datasets: requests with their defaults, results whole."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.app.circuits.dataset_circuit_costs import DatasetCost
from trephine.app.circuits.dataset_circuits import COLLECTION, StoredDatasetCircuit
from trephine.app.jobs.requests import DatasetCircuitRequest
from trephine.domain import dataset_circuits as domain
from trephine.domain.errors import InvalidRequestError
from trephine.domain.models import ModelInfo
from trephine.domain.sites import NEURONS, FeatureRef
from trephine.rpc.wire.common import feature_to_wire, figure_to_wire, version_to_wire
from trephine.rpc.wire.fields import at_least, clean, finite, one_of, prompt, qualified, resource_id
from trephine.rpc.wire.interventions import ERROR_TERM_NUMBERS, ERROR_TERMS
from trephine.v1 import dataset_circuits_pb2 as pb

ESTIMATORS = {
    pb.EFFECT_ESTIMATOR_UNSPECIFIED: domain.Estimator.ATTRIBUTION_PATCHING,
    pb.EFFECT_ESTIMATOR_ATTRIBUTION_PATCHING: domain.Estimator.ATTRIBUTION_PATCHING,
    pb.EFFECT_ESTIMATOR_INTEGRATED_GRADIENTS: domain.Estimator.INTEGRATED_GRADIENTS,
    pb.EFFECT_ESTIMATOR_RELP: domain.Estimator.RELP,
    pb.EFFECT_ESTIMATOR_EXACT: domain.Estimator.EXACT,
}
ABLATIONS = {
    pb.NODE_ABLATION_MEAN: domain.NodeAblation.MEAN,
    pb.NODE_ABLATION_ZERO: domain.NodeAblation.ZERO,
    pb.NODE_ABLATION_RESAMPLE: domain.NodeAblation.RESAMPLE,
}
POSITIONS = {
    pb.POSITION_RULE_UNSPECIFIED: domain.PositionRule.SUMMED,
    pb.POSITION_RULE_KEPT: domain.PositionRule.KEPT,
    pb.POSITION_RULE_SUMMED: domain.PositionRule.SUMMED,
}
_ESTIMATOR_NUMBERS = {estimator: number for number, estimator in ESTIMATORS.items()}
_ABLATION_NUMBERS = {ablation: number for number, ablation in ABLATIONS.items()}
_POSITION_NUMBERS = {rule: number for number, rule in POSITIONS.items()}


def discover_dataset_from_wire(request: pb.DiscoverDatasetCircuitRequest) -> DatasetCircuitRequest:
    """Read a request, with the defaults that the contract states.

    Raises:
        InvalidRequestError: Naming the field.
    """
    for index, layer in enumerate(request.layers):
        at_least(layer, 0, f"layers[{index}]")
    has = request.HasField
    patch = request.patch
    command = domain.DiscoverDatasetCircuit(
        training=_examples(request.training, "training"),
        held_out=_examples(request.held_out, "held_out"),
        replacement=request.replacement or NEURONS,
        beside=_beside(request.beside),
        layers=tuple(dict.fromkeys(request.layers)) or None,
        estimator=one_of(request.estimator, ESTIMATORS, "estimator"),
        steps=request.steps if has("steps") else 5,
        exact_nodes=request.exact_nodes if has("exact_nodes") else 256,
        positions=one_of(request.positions, POSITIONS, "positions"),
        patch=None if patch == pb.NODE_ABLATION_UNSPECIFIED else one_of(patch, ABLATIONS, "patch"),
        error_term=one_of(request.error_term, ERROR_TERMS, "error_term"),
        ablations=_ablations(request),
        size=_size(request),
        stability=_stability(request),
        clusters=request.clusters if has("clusters") else 1,
        seed=request.seed,
    )
    return DatasetCircuitRequest(model=resource_id(request.model, "models", "model"), command=command)


def _beside(names: Sequence[str]) -> tuple[str, ...]:
    for index, name in enumerate(names):
        if not name:
            raise InvalidRequestError(
                f"beside[{index}] is empty; name heads, errors, or a set", field=f"beside[{index}]"
            )
    return tuple(names)


def _examples(messages: Sequence[pb.DatasetExample], field: str) -> tuple[domain.Example, ...]:
    found = []
    for number, message in enumerate(messages):
        place = f"{field}[{number}]"
        if not message.answers:
            raise InvalidRequestError(f"{place} has no answer", field=f"{place}.answers")
        found.append(
            domain.Example(
                clean=prompt(message.clean, f"{place}.clean"),
                corrupted=prompt(message.corrupted, f"{place}.corrupted")
                if message.HasField("corrupted")
                else None,
                answers=tuple(message.answers),
                wrong=tuple(message.wrong),
            )
        )
    return tuple(found)


def _ablations(request: pb.DiscoverDatasetCircuitRequest) -> tuple[domain.NodeAblation, ...]:
    chosen = [one_of(one, ABLATIONS, f"ablations[{index}]") for index, one in enumerate(request.ablations)]
    return tuple(dict.fromkeys(chosen)) or (domain.NodeAblation.MEAN, domain.NodeAblation.ZERO)


def _size(request: pb.DiscoverDatasetCircuitRequest) -> domain.Discretion:
    has = request.HasField
    return domain.Discretion(
        nodes=request.nodes if has("nodes") else 100,
        threshold=finite(request.threshold, "threshold") if has("threshold") else None,
        edge_nodes=request.edge_nodes if has("edge_nodes") else 64,
        edge_examples=request.edge_examples if has("edge_examples") else 32,
        random_circuits=request.random_circuits if has("random_circuits") else 20,
        curve=not request.without_curve,
        bootstrap=request.bootstrap if has("bootstrap") else 1000,
    )


def _stability(request: pb.DiscoverDatasetCircuitRequest) -> domain.Subsampling:
    has = request.HasField
    return domain.Subsampling(
        draws=request.stability_draws if has("stability_draws") else 20,
        share=finite(request.stability_share, "stability_share") if has("stability_share") else 0.5,
        keep=finite(request.stability_keep, "stability_keep") if has("stability_keep") else 0.9,
    )


def dataset_circuit_to_wire(stored: StoredDatasetCircuit, *, whole: bool = True) -> pb.DatasetCircuit:
    """Write what was found; without `whole` its circuits are left out."""
    found = stored.found
    return pb.DatasetCircuit(
        name=qualified(COLLECTION, stored.name),
        replacement=clean(found.replacement),
        beside=[clean(name) for name in found.beside],
        estimator=_ESTIMATOR_NUMBERS[found.estimator],
        positions=_POSITION_NUMBERS[found.positions],
        patch=_ABLATION_NUMBERS[found.patch],
        error_term=ERROR_TERM_NUMBERS[found.error_term],
        training=found.training,
        held_out=found.held_out,
        candidates=found.candidates,
        circuits=[_circuit_to_wire(one) for one in found.circuits] if whole else (),
        clustering=None if found.clustering is None else _clustering_to_wire(found.clustering),
        certificate=clean(found.certificate),
        caveats=[clean(caveat) for caveat in found.caveats],
        seconds=found.seconds,
        version=version_to_wire(found.model, found.weight_hash),
        seed=found.seed,
        create_time=clean(stored.create_time),
        sets=[
            pb.DatasetCircuitSet(name=clean(each.name), content_hash=each.content_hash) for each in found.sets
        ],
        layers=found.layers,
    )


def checked_to_wire(
    request: DatasetCircuitRequest,
    info: ModelInfo,
    cost: DatasetCost,
    checked: domain.CheckedDatasetCircuit,
) -> pb.DatasetCircuit:
    """Write what is known before anything is found; time and memory are predictions."""
    command = request.command
    return pb.DatasetCircuit(
        replacement=clean(command.replacement),
        beside=[clean(name) for name in command.beside],
        estimator=_ESTIMATOR_NUMBERS[command.estimator],
        positions=_POSITION_NUMBERS[command.positions],
        error_term=ERROR_TERM_NUMBERS[command.error_term],
        training=len(command.training),
        held_out=len(command.held_out),
        patch=_ABLATION_NUMBERS[checked.patch],
        candidates=checked.candidates,
        seconds=cost.seconds,
        peak_extra_bytes=cost.memory_bytes,
        version=version_to_wire(info.name, info.weight_hash),
        seed=command.seed,
    )


def _circuit_to_wire(circuit: domain.ContextCircuit) -> pb.ContextCircuit:
    return pb.ContextCircuit(
        label=clean(circuit.label),
        training=circuit.training,
        held_out=circuit.held_out,
        contexts=[clean(text) for text in circuit.contexts],
        choices=[clean(text) for text in circuit.choices],
        effect_share=circuit.effect_share,
        nodes=[_node_to_wire(node) for node in circuit.nodes],
        abstained=[_node_to_wire(node) for node in circuit.abstained],
        n_abstained=circuit.n_abstained,
        edges=[
            pb.DatasetEdge(source=edge.source, target=edge.target, weight=edge.weight)
            for edge in circuit.edges
        ],
        faithfulness=[_faithfulness_to_wire(one) for one in circuit.faithfulness],
    )


def _node_to_wire(node: domain.DatasetNode) -> pb.DatasetNode:
    feature = FeatureRef(replacement=clean(node.replacement), layer=node.layer, index=node.index)
    return pb.DatasetNode(
        feature=feature_to_wire(feature),
        position=node.position,
        effect=node.effect,
        frequency=node.frequency,
        stable=node.stable,
        certified_edits=node.certified_edits,
    )


def _faithfulness_to_wire(found: domain.Faithfulness) -> pb.HeldOutFaithfulness:
    return pb.HeldOutFaithfulness(
        ablation=_ABLATION_NUMBERS[found.ablation],
        examples=found.examples,
        whole=figure_to_wire(found.whole),
        empty=figure_to_wire(found.empty),
        circuit=_point_to_wire(found.circuit),
        core=None if found.core is None else _point_to_wire(found.core),
        curve=[_point_to_wire(point) for point in found.curve],
        random=found.random,
        p_value=found.p_value,
        nodes_for_80=found.nodes_for_80,
    )


def _point_to_wire(point: domain.CurvePoint) -> pb.FaithfulnessPoint:
    return pb.FaithfulnessPoint(
        nodes=point.nodes,
        faithfulness=figure_to_wire(point.faithfulness),
        completeness=figure_to_wire(point.completeness),
        metric=point.metric,
    )


def _clustering_to_wire(found: domain.Clustering) -> pb.ContextClustering:
    return pb.ContextClustering(
        clusters=found.clusters,
        silhouette=found.silhouette,
        null_silhouette=found.null_silhouette,
        sizes=found.sizes,
        assignment=found.assignment,
    )
