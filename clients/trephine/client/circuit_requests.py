"""Requests about stored circuits, built from plain arguments. Shared by the sync and the async surface."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trephine.client.errors import InvalidRequestError, LocalFileError
from trephine.client.plain_json import parse_json
from trephine.client.requests import resource
from trephine.client.sendable import sendable
from trephine.client.set_ids import AnySet, set_id
from trephine.client.types import NodeKind, NodeSort, Pruning
from trephine.v1 import circuit_queries_pb2 as pb
from trephine.v1 import circuit_service_pb2 as service_pb


def node_kind(kind: NodeKind | None) -> Any:
    """The contract's number of a node kind; None means any."""
    name = "NODE_KIND_UNSPECIFIED" if kind is None else f"NODE_KIND_{kind.value.upper()}"
    return service_pb.NodeKind.Value(name)


@sendable
def listing(model: str, replacement: AnySet, prompt: str, parent: str) -> service_pb.ListCircuitsRequest:
    """List circuits."""
    return service_pb.ListCircuitsRequest(
        page_size=500,
        model=resource("models", model) if model else "",
        replacement=set_id(replacement),
        prompt=prompt,
        parent=resource("circuits", parent) if parent else "",
    )


@sendable
def nodes(
    circuit: str,
    kind: NodeKind | None,
    min_influence: float | None,
    layers: Sequence[int],
    positions: Sequence[int],
    token: str,
    pinned: bool,
    order: NodeSort | str,
) -> service_pb.ListNodesRequest:
    """List a circuit's nodes."""
    return service_pb.ListNodesRequest(
        circuit=circuit,
        kind=node_kind(kind),
        min_influence=min_influence,
        layers=layers,
        positions=positions,
        token=token,
        pinned=pinned,
        order=pb.NodeSort.Value(f"NODE_SORT_{NodeSort(order).value.upper()}"),
        page_size=1000,
    )


@sendable
def around(
    circuit: str, node: int, ancestors: int, descendants: int, min_weight: float, max_nodes: int
) -> pb.QuerySubgraphRequest:
    """Ask for what is around a node."""
    part = pb.AroundNode(node=node, ancestors=ancestors, descendants=descendants)
    return pb.QuerySubgraphRequest(
        circuit=circuit, around=part, min_weight=min_weight, max_nodes=max_nodes, page_size=10_000
    )


@sendable
def between(
    circuit: str, source: int, target: int, paths: int, min_weight: float, max_nodes: int
) -> pb.QuerySubgraphRequest:
    """Ask for what is between two nodes."""
    part = pb.BetweenNodes(source=source, target=target, paths=paths)
    return pb.QuerySubgraphRequest(
        circuit=circuit, between=part, min_weight=min_weight, max_nodes=max_nodes, page_size=10_000
    )


@sendable
def edges(
    circuit: str, source: int | None, target: int | None, min_weight: float | None
) -> service_pb.ListEdgesRequest:
    """List a circuit's edges."""
    return service_pb.ListEdgesRequest(
        circuit=circuit, source=source, target=target, min_weight=min_weight, page_size=10_000
    )


def joined(parts: Sequence[Any]) -> Any:
    """The pages of a subgraph as one message."""
    whole = parts[0]
    for part in parts[1:]:
        whole.edges.extend(part.edges)
    whole.next_page_token = ""
    return whole


@sendable
def pruning_bounds(bounds: Pruning | None) -> pb.PruningBounds | None:
    """Say what is stored of a circuit that is found."""
    return None if bounds is None else pb.PruningBounds(**asdict(bounds))


@sendable
def prune(
    circuit: str,
    node_threshold: float | None,
    edge_threshold: float | None,
    max_nodes: int | None,
    max_edges: int | None,
    keep: Sequence[int],
    validate_only: bool,
) -> pb.PruneCircuitRequest:
    """Prune a circuit."""
    return pb.PruneCircuitRequest(
        circuit=circuit,
        node_threshold=node_threshold,
        edge_threshold=edge_threshold,
        max_nodes=max_nodes,
        max_edges=max_edges,
        keep=keep,
        validate_only=validate_only,
    )


@sendable
def pin(circuit: str, nodes: Sequence[int], author: str) -> pb.PinNodesRequest:
    """Pin nodes."""
    return pb.PinNodesRequest(circuit=circuit, nodes=nodes, author=author)


@sendable
def label(circuit: str, node: int, text: str, author: str) -> pb.LabelNodeRequest:
    """Label a node."""
    return pb.LabelNodeRequest(circuit=circuit, node=node, text=text, author=author)


@sendable
def group(circuit: str, name: str, nodes: Sequence[int], author: str) -> pb.GroupCircuitRequest:
    """Make one group."""
    return pb.GroupCircuitRequest(
        circuit=circuit, by_hand=pb.GroupByHand(name=name, nodes=nodes), author=author
    )


@sendable
def group_automatically(circuit: str, by: str, author: str, **bounds: Any) -> pb.GroupCircuitRequest:
    """Find groups; bounds that are None are left unset."""
    name = f"GROUPING_BASIS_{by.upper()}"
    if name not in pb.GroupingBasis.keys():  # noqa: SIM118  an enum wrapper, no mapping
        raise InvalidRequestError(f"groups are found by `directions` or by `edges`, not by {by!r}")
    given = {name: value for name, value in bounds.items() if value is not None}
    automatic = pb.GroupAutomatically(basis=pb.GroupingBasis.Value(name), **given)
    return pb.GroupCircuitRequest(circuit=circuit, automatic=automatic, author=author)


@sendable
def ungroup(circuit: str, group: str) -> pb.UngroupCircuitRequest:
    """Dissolve a group."""
    return pb.UngroupCircuitRequest(circuit=circuit, group=group)


@sendable
def import_annotations(
    circuit: str, source: Path | Mapping[str, Any], author: str
) -> pb.ImportAnnotationsRequest:
    """Bring annotations in; of a whole graph, its `qParams` alone are sent.

    Raises:
        LocalFileError: If the file cannot be read.
        InvalidRequestError: If it is no JSON object.
    """
    document = _json(source) if isinstance(source, Path) else source
    if not isinstance(document, Mapping):
        raise InvalidRequestError(f"{source} holds no JSON object")
    view = document.get("qParams", document)
    return pb.ImportAnnotationsRequest(circuit=circuit, document=json.dumps(view).encode(), author=author)


def diff(
    first: str, second: str, sum_positions: bool, max_nodes: int, max_edges: int
) -> pb.DiffCircuitsRequest:
    """Compare two circuits."""
    return pb.DiffCircuitsRequest(
        first=first,
        second=second,
        sum_positions=sum_positions,
        max_nodes=max_nodes,
        max_edges=max_edges,
    )


def _json(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes())
    except OSError as failure:
        raise LocalFileError(f"cannot read {path}: {failure.strerror}") from failure
    except ValueError as failure:
        raise InvalidRequestError(f"{path} is no JSON: {failure}") from failure
