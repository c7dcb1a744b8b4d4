"""Circuits, their nodes and edges."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.app.circuits.circuit_costs import DiscoveryCost
from trephine.app.circuits.circuits import CircuitFormat, ListedEdge, ListedNode, StoredCircuit
from trephine.domain.circuit_queries import Provenance
from trephine.domain.circuits import (
    DiscoverCircuit,
    EstimateQuality,
    GraphScores,
    GraphSet,
    HierarchicalFigures,
    NodeKind,
)
from trephine.domain.error_sites import error_site
from trephine.domain.errors import InvalidRequestError
from trephine.domain.findings import Figure
from trephine.domain.models import ModelInfo
from trephine.domain.sites import NEURONS, FeatureRef
from trephine.domain.tokens import Token
from trephine.rpc.wire.circuit_targets import explained_to_wire, graph_target_from_wire
from trephine.rpc.wire.common import (
    feature_to_wire,
    figure_to_wire,
    token_to_wire,
    version_to_wire,
)
from trephine.rpc.wire.fields import at_least, clean, finite, one_of, prompt, qualified, within
from trephine.rpc.wire.global_figures import across_to_wire
from trephine.v1 import circuit_queries_pb2 as queries_pb
from trephine.v1 import circuit_service_pb2 as pb

KINDS: dict[pb.NodeKind.ValueType, NodeKind | None] = {
    pb.NODE_KIND_UNSPECIFIED: None,
    pb.NODE_KIND_FEATURE: NodeKind.FEATURE,
    pb.NODE_KIND_ERROR: NodeKind.ERROR,
    pb.NODE_KIND_TOKEN: NodeKind.TOKEN,
    pb.NODE_KIND_LOGIT: NodeKind.LOGIT,
}
_KIND_NUMBERS = {kind: number for number, kind in KINDS.items() if kind is not None}
_FORMATS: dict[pb.CircuitFormat.ValueType, CircuitFormat] = {
    pb.CIRCUIT_FORMAT_JSON: "json",
    pb.CIRCUIT_FORMAT_HTML: "html",
    pb.CIRCUIT_FORMAT_GRAPHML: "graphml",
}


def discover_from_wire(request: pb.DiscoverCircuitRequest) -> DiscoverCircuit:
    """Read a discovery, with the defaults that the contract states.

    Raises:
        InvalidRequestError: Naming the field.
    """
    with within("target"):
        target = graph_target_from_wire(request.target)
    for index, layer in enumerate(request.layers):
        at_least(layer, 0, f"layers[{index}]")
    nodes = (
        at_least(request.max_feature_nodes, 1, "max_feature_nodes")
        if _has(request, "max_feature_nodes")
        else 512
    )
    return DiscoverCircuit(
        prompt=prompt(request.prompt),
        target=target,
        positions=tuple(request.target.positions),
        replacement=request.replacement or NEURONS,
        layers=tuple(request.layers) or None,
        beside=named_beside(request.beside),
        max_feature_nodes=nodes,
        min_attribution=finite(request.min_attribution, "min_attribution")
        if _has(request, "min_attribution")
        else None,
        edge_mass=share(request.edge_mass, "edge_mass") if _has(request, "edge_mass") else 0.99,
        verify_nodes=at_least(request.verify_nodes, 0, "verify_nodes")
        if _has(request, "verify_nodes")
        else 128,
        seed=request.seed,
    )


def named_beside(names: Sequence[str]) -> tuple[str, ...]:
    """Return names of further sets.

    Raises:
        InvalidRequestError: If one is empty; it names the field.
    """
    for index, name in enumerate(names):
        if not name:
            raise InvalidRequestError(
                f"beside[{index}] is empty; name a set, or neurons", field=f"beside[{index}]"
            )
    return tuple(names)


def share(value: float, field: str) -> float:
    """Return a number in (0, 1].

    Raises:
        InvalidRequestError: Naming the field.
    """
    if not 0 < finite(value, field) <= 1:
        raise InvalidRequestError(f"{field} must be in (0, 1], got {value}", field=field)
    return value


def circuit_to_wire(stored: StoredCircuit) -> pb.Circuit:
    """Write a circuit without its nodes and edges, which are read in pages."""
    circuit, figures = stored.circuit, stored.circuit.figures
    return pb.Circuit(
        name=qualified("circuits", stored.name),
        prompt=clean(circuit.prompt),
        tokens=[token_to_wire(token) for token in circuit.tokens],
        targets=[explained_to_wire(target) for target in circuit.targets],
        replacement=clean(circuit.replacement),
        edge_rule=clean(circuit.edge_rule),
        quality=None if circuit.quality is None else _quality_to_wire(circuit.quality),
        baseline=figures.baseline,
        selected_share=figures.selected_share,
        error_share=figures.error_share,
        active_features=figures.active_features,
        n_nodes=len(circuit.nodes),
        n_edges=circuit.edges.weight.shape[0],
        caveats=[clean(caveat) for caveat in circuit.caveats],
        create_time=clean(stored.create_time),
        version=version_to_wire(circuit.model, circuit.weight_hash),
        seconds=figures.seconds,
        peak_extra_bytes=figures.peak_extra_bytes,
        provenance=provenance_to_wire(stored.provenance),
        scores=None if figures.scores is None else _scores_to_wire(figures.scores),
        hierarchy=None if figures.hierarchy is None else _hierarchy_to_wire(figures.hierarchy),
        sets=[circuit_set_to_wire(each) for each in circuit.sets],
        layers=circuit.layers or (),
        across=None if circuit.across is None else across_to_wire(circuit.across),
    )


def checked_to_wire(
    command: DiscoverCircuit,
    info: ModelInfo,
    tokens: tuple[Token, ...],
    cost: DiscoveryCost,
    sets: Sequence[GraphSet],
) -> pb.Circuit:
    """Write what is known of a circuit before it is found; time and memory are predictions."""
    return pb.Circuit(
        prompt=command.prompt,
        tokens=[token_to_wire(token) for token in tokens],
        replacement=clean(command.replacement),
        version=version_to_wire(info.name, info.weight_hash),
        seconds=cost.seconds,
        peak_extra_bytes=cost.memory_bytes,
        sets=[circuit_set_to_wire(each) for each in sets],
    )


def node_to_wire(listed: ListedNode) -> pb.Node:
    """Write a node; bias, remainder and total are set if it is a target row."""
    node, feature = listed.node, None
    if node.kind is NodeKind.FEATURE:
        feature = FeatureRef(replacement=clean(node.replacement), layer=node.layer, index=node.feature)
    return pb.Node(
        index=listed.index,
        kind=_KIND_NUMBERS[node.kind],
        layer=node.layer,
        position=node.position,
        feature=None if feature is None else feature_to_wire(feature),
        activation=node.activation,
        influence=node.influence,
        effect=node.effect,
        label=clean(node.label),
        promotes=[clean(text) for text in node.promotes],
        suppresses=[clean(text) for text in node.suppresses],
        bias=listed.bias,
        remainder=listed.remainder,
        total=listed.total,
        error_site=error_site(node) or "",
    )


def provenance_to_wire(provenance: Provenance) -> queries_pb.Provenance:
    """Write where a circuit came from."""
    return queries_pb.Provenance(
        origin=provenance.origin, parent=clean(provenance.parent), how=clean(provenance.how)
    )


def edge_to_wire(edge: ListedEdge) -> pb.Edge:
    """Write an edge."""
    return pb.Edge(source=edge.source, target=edge.target, weight=edge.weight)


def kind_from_wire(kind: pb.NodeKind.ValueType) -> NodeKind | None:
    """Read a node kind; unspecified means any."""
    return one_of(kind, KINDS, "kind")


def format_from_wire(number: pb.CircuitFormat.ValueType) -> CircuitFormat:
    """Read a format; unspecified is refused."""
    return one_of(number, _FORMATS, "format")


def circuit_set_to_wire(each: GraphSet) -> pb.CircuitSet:
    """Write a set that a circuit spans."""
    return pb.CircuitSet(name=clean(each.name), content_hash=clean(each.content_hash))


def _has(request: pb.DiscoverCircuitRequest, field: str) -> bool:
    return bool(request.HasField(field))  # type: ignore[arg-type]  # the stub lists literals


def _scores_to_wire(scores: GraphScores) -> pb.GraphScores:
    return pb.GraphScores(
        replacement=scores.replacement,
        completeness=scores.completeness,
        charged_replacement=scores.charged_replacement,
        charged_completeness=scores.charged_completeness,
    )


def _hierarchy_to_wire(found: HierarchicalFigures) -> pb.HierarchicalAttribution:
    return pb.HierarchicalAttribution(
        threshold=found.threshold,
        asked_threshold=found.asked_threshold,
        root=found.root,
        tokens=found.tokens,
        errors=found.errors,
        constants=found.constants,
        stopped=found.stopped,
        stopped_mass=found.stopped_mass,
        survivors=found.survivors,
        stopped_features=found.stopped_features,
    )


def _quality_to_wire(quality: EstimateQuality) -> pb.EstimateQuality:
    q = quality
    slope = Figure(name="slope", value=q.slope, low=q.slope_low, high=q.slope_high)
    spearman = Figure(name="spearman", value=q.spearman, low=q.spearman_low, high=q.spearman_high)
    edge_slope = Figure(name="edge_slope", value=q.edge_slope, low=q.edge_slope_low, high=q.edge_slope_high)
    edge_spearman = Figure(
        name="edge_spearman", value=q.edge_spearman, low=q.edge_spearman_low, high=q.edge_spearman_high
    )
    return pb.EstimateQuality(
        nodes=quality.nodes,
        slope=figure_to_wire(slope),
        spearman=figure_to_wire(spearman),
        edge_slope=figure_to_wire(edge_slope),
        edge_spearman=figure_to_wire(edge_spearman),
        how=clean(quality.how),
        predicted=quality.predicted,
        measured=quality.measured,
    )
