"""A circuit in the JSON schema that Neuronpedia and circuit-tracer's viewer read.

Source of the schema: circuit-tracer 0.5, `frontend/graph_models.py` (schema_version 1). Error nodes
carry the later id `{layer}_-1_{position}`: the earlier `0_{layer}_{position}` collides with features of
layer 0.
"""

from __future__ import annotations

from array import array
from itertools import accumulate
from typing import Any

from trephine.domain.circuits import Circuit, Node, NodeKind, PrunedNodes
from trephine.pages.embed import printable

_FEATURE_TYPES = {
    # The viewer knows this one name for every kind of feature, per-layer transcoders and neurons too.
    NodeKind.FEATURE: "cross layer transcoder",
    NodeKind.ERROR: "mlp reconstruction error",
    NodeKind.TOKEN: "embedding",
    NodeKind.LOGIT: "logit",
}


def circuit_json(circuit: Circuit, kept: PrunedNodes, *, slug: str) -> dict[str, Any]:
    """Return the document: `metadata`, `qParams`, `nodes`, `links`.

    Args:
        circuit: What was discovered.
        kept: Which nodes and edges survive pruning.
        slug: Name of the graph in a viewer.
    """
    nodes = list(circuit.nodes)
    logit_layer = 1 + max((node.layer for node in nodes if node.kind is NodeKind.FEATURE), default=0)
    ids = {index: node_id(nodes[index], logit_layer) for index in kept.nodes}
    return {
        "metadata": {
            "slug": slug,
            "scan": f"{circuit.model}/{circuit.replacement}",
            "transcoder_list": [],
            "prompt_tokens": [printable(token.display) for token in circuit.tokens],
            "prompt": printable(circuit.prompt),
            "node_threshold": kept.node_threshold,
            "schema_version": 1,
            "info": {
                "creator_name": "trephine",
                "generator": {"name": "trephine", "edge_rule": circuit.edge_rule},
                "weight_hash": circuit.weight_hash,
                "caveats": list(circuit.caveats),
            },
            "pruning_settings": {
                "node_threshold": kept.node_threshold,
                "edge_threshold": kept.edge_threshold,
            },
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": [
            _node(nodes[index], ids[index], cumulative, logit_layer)
            for index, cumulative in zip(kept.nodes, _cumulative(circuit, kept), strict=True)
        ],
        "links": [
            {"source": ids[source], "target": ids[target], "weight": weight}
            for source, target, weight in kept_edges(circuit, kept)
        ],
    }


def node_id(node: Node, logit_layer: int) -> str:
    """Return the schema's id of a node."""
    match node.kind:
        case NodeKind.FEATURE:
            return f"{node.layer}_{node.feature}_{node.position}"
        case NodeKind.ERROR:
            return f"{node.layer}_-1_{node.position}"
        case NodeKind.TOKEN:
            return f"E_{node.feature}_{node.position}"
        case NodeKind.LOGIT:
            return f"{logit_layer}_{node.feature}_{node.position}"


def kept_edges(circuit: Circuit, kept: PrunedNodes) -> list[tuple[int, int, float]]:
    """Return `(source, target, weight)` of the edges that survive pruning, node indices."""
    source, target = array("i", circuit.edges.source.data), array("i", circuit.edges.target.data)
    weight = array("f", circuit.edges.weight.data)
    return [(source[index], target[index], weight[index]) for index in kept.edges]


def _cumulative(circuit: Circuit, kept: PrunedNodes) -> list[float]:
    """Share of influence of all nodes at least as influential: the viewer's slider cuts by it."""
    influence = [circuit.nodes[index].influence for index in kept.nodes]
    order = sorted(range(len(influence)), key=lambda place: -influence[place])
    total = sum(influence) or 1.0
    shares = accumulate(influence[place] / total for place in order)
    by_place = dict(zip(order, shares, strict=True))
    return [by_place[place] for place in range(len(influence))]


def _node(node: Node, identity: str, cumulative: float, logit_layer: int) -> dict[str, Any]:
    layer = {NodeKind.TOKEN: "E", NodeKind.LOGIT: str(logit_layer)}.get(node.kind, str(node.layer))
    is_feature = node.kind is NodeKind.FEATURE
    return {
        "node_id": identity,
        "feature": _cantor(node.layer, node.feature)
        if is_feature
        else (node.position if node.kind is NodeKind.TOKEN else node.feature),
        "layer": layer,
        "ctx_idx": node.position,
        "feature_type": _FEATURE_TYPES[node.kind],
        "token_prob": node.activation if node.kind is NodeKind.LOGIT else 0.0,
        "is_target_logit": node.kind is NodeKind.LOGIT,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{layer}_{node.feature}-0" if is_feature else f"{identity}-0",
        "clerp": printable(node.label),
        "influence": cumulative,
        "activation": node.activation if is_feature else None,
    }


def _cantor(layer: int, feature: int) -> int:
    """Pair two numbers into one, as the viewer's feature links expect."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature
