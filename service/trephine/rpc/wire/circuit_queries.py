"""Subgraphs, differences, annotations and filters of circuits."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trephine.app.circuits.circuit_diff import (
    CircuitDiff,
    ComparedNode,
    NodeSide,
    by_name_alone,
    same_targets,
)
from trephine.app.circuits.circuits import ListedNode, StoredCircuit
from trephine.domain.circuit_annotations import Annotations, AutomaticGroups, GroupingBasis, NodeLabel
from trephine.domain.circuit_queries import (
    Around,
    Between,
    CircuitFilter,
    CircuitPath,
    NodeFilter,
    NodeSort,
    Pruning,
)
from trephine.domain.circuits import Circuit, NodeKind
from trephine.domain.error_sites import error_site
from trephine.domain.errors import InvalidRequestError
from trephine.domain.group_scores import GroupingScores
from trephine.domain.sites import FeatureRef
from trephine.rpc.wire.circuits import KINDS, kind_from_wire, node_to_wire, share
from trephine.rpc.wire.common import feature_to_wire, figure_to_wire
from trephine.rpc.wire.fields import at_least, clean, finite, one_of, resource_id
from trephine.rpc.wire.group_scores import scores_to_wire
from trephine.v1 import circuit_queries_pb2 as pb
from trephine.v1 import circuit_service_pb2 as service_pb

_SORTS = {
    pb.NODE_SORT_UNSPECIFIED: NodeSort.INFLUENCE,
    pb.NODE_SORT_INFLUENCE: NodeSort.INFLUENCE,
    pb.NODE_SORT_EFFECT: NodeSort.EFFECT,
    pb.NODE_SORT_ACTIVATION: NodeSort.ACTIVATION,
    pb.NODE_SORT_INDEX: NodeSort.INDEX,
}
_BASES: dict[pb.GroupingBasis.ValueType, GroupingBasis] = {
    pb.GROUPING_BASIS_UNSPECIFIED: "directions",
    pb.GROUPING_BASIS_DIRECTIONS: "directions",
    pb.GROUPING_BASIS_EDGES: "edges",
}
_KIND_NUMBERS = {kind: number for number, kind in KINDS.items() if kind is not None}
_DOCUMENT_BYTES = 6 << 20


def filter_from_wire(request: service_pb.ListCircuitsRequest) -> CircuitFilter:
    """Read which circuits are listed."""
    return CircuitFilter(
        model=resource_id(request.model, "models", "model") if request.model else "",
        replacement=request.replacement,
        prompt=request.prompt,
        parent=f"circuits/{resource_id(request.parent, 'circuits', 'parent')}" if request.parent else "",
    )


def nodes_from_wire(request: service_pb.ListNodesRequest) -> NodeFilter:
    """Read which nodes are listed."""
    smallest = finite(request.min_influence, "min_influence")
    return NodeFilter(
        kind=kind_from_wire(request.kind),
        min_influence=smallest if request.HasField("min_influence") else None,
        layers=frozenset(at_least(one, -1, f"layers[{n}]") for n, one in enumerate(request.layers)),
        positions=frozenset(at_least(one, -1, f"positions[{n}]") for n, one in enumerate(request.positions)),
        token=request.token,
        pinned=request.pinned,
        order=one_of(request.order, _SORTS, "order"),
    )


def question_from_wire(request: pb.QuerySubgraphRequest) -> Around | Between:
    """Read which part of a circuit is asked for.

    Raises:
        InvalidRequestError: If none is, or a number is out of its domain.
    """
    smallest = finite(request.min_weight, "min_weight") if request.HasField("min_weight") else 0.0
    match request.WhichOneof("part"):
        case "around":
            asked = request.around
            return Around(
                node=asked.node,
                ancestors=asked.ancestors if asked.HasField("ancestors") else 1,
                descendants=asked.descendants if asked.HasField("descendants") else 1,
                min_weight=smallest,
            )
        case "between":
            pair = request.between
            return Between(
                source=pair.source,
                target=pair.target,
                paths=pair.paths if pair.HasField("paths") else 10,
                min_weight=smallest,
            )
        case _:
            raise InvalidRequestError("say which part: around a node, or between two", field="part")


def path_to_wire(path: CircuitPath) -> pb.CircuitPath:
    """Write a path."""
    return pb.CircuitPath(
        nodes=path.nodes, weights=path.weights, share=path.share, contribution=path.contribution
    )


def pruning_from_wire(request: pb.PruneCircuitRequest | pb.PruningBounds) -> Pruning:
    """Read what a pruned circuit keeps, with the defaults that the contract states."""
    nodes, edges = 0.8, 0.98
    if request.HasField("node_threshold"):
        nodes = share(request.node_threshold, "node_threshold")
    if request.HasField("edge_threshold"):
        edges = share(request.edge_threshold, "edge_threshold")
    return Pruning(
        node_threshold=nodes,
        edge_threshold=edges,
        max_nodes=at_least(request.max_nodes, 1, "max_nodes") if request.HasField("max_nodes") else None,
        max_edges=at_least(request.max_edges, 1, "max_edges") if request.HasField("max_edges") else None,
        keep=() if isinstance(request, pb.PruningBounds) else tuple(request.keep),
    )


def annotations_to_wire(
    circuit: str, said: Annotations, scores: GroupingScores | None = None, not_scored: str = ""
) -> pb.CircuitAnnotations:
    """Write everything that was said about a circuit's nodes, and scores of its groups where there are."""
    return pb.CircuitAnnotations(
        circuit=f"circuits/{circuit}",
        pins=[
            pb.NodePin(node=one.node, author=clean(one.author), create_time=clean(one.create_time))
            for one in said.pins
        ],
        labels=[label_to_wire(one) for one in said.labels],
        groups=[
            pb.NodeGroup(
                name=clean(one.name),
                nodes=one.nodes,
                author=clean(one.author),
                create_time=clean(one.create_time),
                how=clean(one.how),
                cohesion=one.cohesion,
            )
            for one in said.groups
        ],
        scores=None if scores is None else scores_to_wire(scores),
        not_scored=clean(not_scored),
    )


def label_to_wire(label: NodeLabel) -> pb.NodeLabel:
    """Write a label."""
    return pb.NodeLabel(
        node=label.node,
        text=clean(label.text),
        author=clean(label.author),
        create_time=clean(label.create_time),
    )


def nodes_to_wire(listed: Iterable[ListedNode], said: Annotations) -> list[service_pb.Node]:
    """Write nodes with what was said about them."""
    labels = {label.node: label for label in said.labels}
    groups = {node: group.name for group in said.groups for node in group.nodes}
    pinned, written = said.pinned, []
    for one in listed:
        node = node_to_wire(one)
        node.pinned, node.group = one.index in pinned, clean(groups.get(one.index, ""))
        if one.index in labels:
            node.given_label.CopyFrom(label_to_wire(labels[one.index]))
        written.append(node)
    return written


def automatic_from_wire(asked: pb.GroupAutomatically) -> AutomaticGroups:
    """Read how groups are found, with the defaults that the contract states.

    Raises:
        InvalidRequestError: If the threshold is both given and to be chosen.
    """
    if _has(asked, "min_similarity") and _has(asked, "min_shown"):
        raise InvalidRequestError(
            "min_shown chooses min_similarity: name one of the two", field="automatic.min_shown"
        )
    otherwise = AutomaticGroups()
    given = {
        name: getattr(asked, name) if _has(asked, name) else getattr(otherwise, name)
        for name in ("min_similarity", "max_layers_apart", "max_positions_apart", "max_nodes", "min_shown")
    }
    return AutomaticGroups(basis=one_of(asked.basis, _BASES, "automatic.basis"), **given)


def document_from_wire(data: bytes) -> Mapping[str, Any]:
    """Read annotations.

    Raises:
        InvalidRequestError: If they are too large or no JSON object.
    """
    if len(data) > _DOCUMENT_BYTES:
        raise InvalidRequestError(
            f"the document has {len(data)} bytes and may have {_DOCUMENT_BYTES}; send its qParams alone",
            field="document",
        )
    try:
        document = json.loads(data)
    except ValueError as error:
        raise InvalidRequestError(f"the document is no JSON: {error}", field="document") from error
    if not isinstance(document, dict):
        raise InvalidRequestError("the document is no JSON object", field="document")
    return document


def diff_to_wire(
    sides: Sequence[StoredCircuit], diff: CircuitDiff, summed: bool, n_nodes: int, n_edges: int
) -> service_pb.DiffCircuitsResponse:
    """Write the most changed nodes and edges of a difference."""
    several = len({name for side in sides for name in side.circuit.set_names}) > 1
    names = [_shown(one, summed, of_sets=several) for one in diff.nodes]
    return service_pb.DiffCircuitsResponse(
        nodes=[_compared_to_wire(one, summed) for one in diff.nodes[:n_nodes]],
        edges=[
            pb.ComparedEdge(
                source=clean(names[one.source]),
                target=clean(names[one.target]),
                first=one.first,
                second=one.second,
            )
            for one in diff.edges[:n_edges]
        ],
        n_nodes=len(diff.nodes),
        n_edges=len(diff.edges),
        figures=[
            pb.ComparedFigure(first=figure_to_wire(a), second=figure_to_wire(b)) for a, b in diff.figures
        ],
        overlap=[figure_to_wire(one) for one in diff.overlap],
        caveats=[clean(one) for one in _caveats(sides, summed)],
    )


def _caveats(sides: Sequence[StoredCircuit], summed: bool) -> list[str]:
    first, second = (side.circuit for side in sides)
    caveats = []
    if first.weight_hash != second.weight_hash:
        caveats.append("The circuits are of different weights.")
    caveats += _set_caveats(first, second)
    if [one.id for one in first.tokens] != [one.id for one in second.tokens] and not summed:
        caveats.append("Their prompts differ, and nodes are matched by position: sum positions instead?")
    if not same_targets(first, second):
        caveats.append("They explain different targets.")
    if first.units != second.units:
        units = " and ".join(one.units or "no unit" for one in (first, second))
        caveats.append(f"What they explain has different units ({units}): baselines are not compared.")
    if any(side.provenance.is_foreign for side in sides):
        caveats.append("Nothing about an imported circuit was verified.")
    return caveats


def _set_caveats(first: Circuit, second: Circuit) -> list[str]:
    """Say which features can match, where not all can: sets may stand in any order."""
    both = [name for name in first.set_names if name in second.set_names]
    by_name, hashes = (
        by_name_alone(first, second),
        [{s.name: s.content_hash for s in c.sets} for c in (first, second)],
    )
    changed = [name for name in both if name not in by_name and hashes[0][name] != hashes[1][name]]
    alike = [name for name in both if name not in changed]
    rest = f"only features of {', '.join(alike)}, tokens" if alike else "only tokens"
    caveats = []
    if len(both) < max(len(first.sets), len(second.sets)):
        spans = ", ".join("+".join(side.set_names) for side in (first, second))
        caveats.append(f"They span different features ({spans}): {rest}, errors and targets can match.")
    if by_name:
        caveats.append(
            "Not both circuits say what their set held (they are imported, or were stored before that was "
            f"recorded): features of {', '.join(by_name)} are matched by that name alone."
        )
    if changed:
        caveats.append(
            f"They were found with different sets of the name {', '.join(changed)}: {rest}, errors and "
            "targets can match."
        )
    return caveats


def _compared_to_wire(one: ComparedNode, summed: bool) -> service_pb.ComparedNode:
    node, feature = one.node, None
    if node.kind is NodeKind.FEATURE:
        feature = feature_to_wire(
            FeatureRef(replacement=node.replacement, layer=node.layer, index=node.feature)
        )
    return service_pb.ComparedNode(
        kind=_KIND_NUMBERS[node.kind],
        layer=node.layer,
        position=None if summed or node.position < 0 else node.position,
        feature=feature,
        label=clean(node.label),
        first=_side_to_wire(one.first),
        second=_side_to_wire(one.second),
        error_site=error_site(node) or "",
    )


def _side_to_wire(side: NodeSide | None) -> pb.NodeSide | None:
    if side is None:
        return None
    return pb.NodeSide(
        node=side.node,
        count=side.count,
        activation=side.activation,
        influence=side.influence,
        effect=side.effect,
    )


def _shown(one: ComparedNode, summed: bool, *, of_sets: bool) -> str:
    node = one.node
    set_name = f"{node.replacement}:" if of_sets else ""
    address = {
        NodeKind.FEATURE: f"{set_name}{node.layer}:{node.feature}",
        NodeKind.ERROR: f"error {node.layer} {error_site(node) or ''}".rstrip(),
        NodeKind.TOKEN: f"token {node.label!r}",
        NodeKind.LOGIT: f"target {node.label!r}",
    }[node.kind]
    return address if summed or node.position < 0 else f"{address} @{node.position}"


def _has(message: Any, field: str) -> bool:
    return bool(message.HasField(field))
