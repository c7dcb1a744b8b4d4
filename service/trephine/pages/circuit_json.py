"""A circuit in the JSON schema that Neuronpedia and circuit-tracer's viewer read.

Source of the schema: circuit-tracer 0.5, `frontend/graph_models.py` (schema_version 1). Error nodes
carry the later id `{layer}_-1_{position}`: the earlier `0_{layer}_{position}` collides with features of
layer 0. That is the id of an MLP's error, the only one that other tools have; the error of attention's output
at the same place is `{layer}_-2_{position}`, and so on by site (`domain.error_sites`).

Other tools know one set a graph, and their ids name none: `{layer}_{feature}_{position}` is a feature of the
circuit's first set. Of a further one it is `{layer}_{feature}_{position}_{n}` with the set's place, from 1,
in `metadata.info.sets` and in the scan, `MODEL/SET+SET`; what reads the first three parts reads them as
before. Its `feature`, which tells features apart whatever their position, is below -1: no tool takes it for
one of the first set.

What the schema has no place for, effects, rows and promoted tokens, is in `metadata.info.nodes`, by id.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import asdict
from math import isfinite
from typing import Any

from trephine.domain.circuit_annotations import NO_ANNOTATIONS, Annotations
from trephine.domain.circuits import Circuit, Node, NodeKind, PrunedNodes
from trephine.pages.circuit_across import told_across
from trephine.pages.circuit_figures import told_nodes
from trephine.pages.circuit_targets import told_targets
from trephine.pages.embed import printable

_FEATURE_TYPES = {
    # The viewer knows this one name for every kind of feature, per-layer transcoders and neurons too.
    NodeKind.FEATURE: "cross layer transcoder",
    NodeKind.ERROR: "mlp reconstruction error",
    NodeKind.TOKEN: "embedding",
    NodeKind.LOGIT: "logit",
}


def circuit_json(
    circuit: Circuit, kept: PrunedNodes, *, slug: str, annotations: Annotations = NO_ANNOTATIONS
) -> dict[str, Any]:
    """Return the document: `metadata`, `qParams`, `nodes`, `links`.

    Args:
        circuit: What was discovered.
        kept: Which nodes and edges survive pruning.
        slug: Name of the graph in a viewer.
        annotations: Pins and groups go into `qParams`, labels there and into the nodes' `clerp`.
    """
    ids = node_ids(circuit)
    return {
        "metadata": {
            "slug": slug,
            "scan": scan_of(circuit),
            "transcoder_list": [],
            "prompt_tokens": [printable(token.display) for token in circuit.tokens],
            "prompt": printable(circuit.prompt),
            "node_threshold": kept.node_threshold,
            "schema_version": 1,
            "info": {
                "creator_name": "trephine",
                "generator": {"name": "trephine", "edge_rule": circuit.edge_rule},
                "weight_hash": circuit.weight_hash,
                "sets": [asdict(each) for each in circuit.sets],
                "caveats": list(circuit.caveats),
                **told_targets(circuit),
                **_hierarchy(circuit),
                **_error_share(circuit),
                **told_across(circuit, {ids[index]: index for index in kept.nodes}),
                "nodes": told_nodes(circuit, kept, ids),
            },
            "pruning_settings": {
                "node_threshold": kept.node_threshold,
                "edge_threshold": kept.edge_threshold,
            },
        },
        "qParams": view_of(circuit, annotations, shown=frozenset(kept.nodes)),
        "nodes": document_nodes(circuit, kept, annotations),
        "links": [
            {"source": ids[source], "target": ids[target], "weight": weight}
            for source, target, weight in kept_edges(circuit, kept)
        ],
    }


def _error_share(circuit: Circuit) -> dict[str, float]:
    """Of all influence: it cannot be had from links, which do not hold what the graph left out."""
    share = circuit.figures.error_share
    return {"error_share": share} if isfinite(share) else {}


def document_nodes(
    circuit: Circuit, kept: PrunedNodes, annotations: Annotations = NO_ANNOTATIONS
) -> list[dict[str, Any]]:
    """Return the document's `nodes`."""
    nodes, ids, texts, places = circuit.nodes, node_ids(circuit), annotations.texts, set_places(circuit)
    main = next((index for index, node in enumerate(nodes) if node.kind is NodeKind.LOGIT), -1)
    return [
        _node(
            nodes[index],
            ids[index],
            _column(nodes[index], circuit),
            (places[index], len(circuit.sets)),
            kept.cumulative[index],
            texts.get(index, nodes[index].label),
            index == main,
            circuit.units == "logits",
        )
        for index in kept.nodes
    ]


def scan_of(circuit: Circuit) -> str:
    """Name model and sets. Of another tool's file both are its scan, which goes out as it came."""
    foreign = circuit.set_names == (circuit.model,)
    return circuit.model if foreign else f"{circuit.model}/{'+'.join(circuit.set_names)}"


def _hierarchy(circuit: Circuit) -> dict[str, Any]:
    """How features were chosen, where it was not by influence."""
    found = circuit.figures.hierarchy
    return {} if found is None else {"hierarchical_attribution": asdict(found)}


def set_places(circuit: Circuit) -> list[int]:
    """Return of every node the place of its set among the circuit's; 0 for what is no feature."""
    places = {name: place for place, name in enumerate(circuit.set_names)}
    return [places.get(node.replacement, 0) for node in circuit.nodes]


def node_ids(circuit: Circuit) -> list[str]:
    """Return the schema's id of every node."""
    return [
        _node_id(node, place, _column(node, circuit))
        for node, place in zip(circuit.nodes, set_places(circuit), strict=True)
    ]


def _column(node: Node, circuit: Circuit) -> int:
    """Return where a node is drawn: what lies at no position above the last token, as on the page."""
    return node.position if node.position >= 0 else len(circuit.tokens) - 1


def _node_id(node: Node, place: int, column: int) -> str:
    """Return the schema's id of a node. Targets lie one layer above the last (as in circuit-tracer)."""
    match node.kind:
        case NodeKind.FEATURE if place:
            return f"{node.layer}_{node.feature}_{column}_{place}"
        case NodeKind.FEATURE | NodeKind.ERROR:
            return f"{node.layer}_{node.feature}_{column}"
        case NodeKind.TOKEN:
            return f"E_{node.feature}_{column}"
        case NodeKind.LOGIT:
            return f"{node.layer + 1}_{node.feature}_{column}"


def view_of(
    circuit: Circuit, annotations: Annotations, *, shown: frozenset[int] | None = None
) -> dict[str, Any]:
    """Return `qParams`, of the nodes that are shown; None: of all.

    `pinnedIds` and `supernodes` (`[[name, id, ...], ...]`) are circuit-tracer's; `clerps`
    (`[[id, label], ...]`) is what Neuronpedia adds.
    """
    ids = node_ids(circuit)

    def named(nodes: Iterable[int]) -> list[str]:
        return [ids[node] for node in nodes if shown is None or node in shown]

    groups = ((group, named(group.nodes)) for group in annotations.groups)
    return {
        "pinnedIds": named(pin.node for pin in annotations.pins),
        "supernodes": [
            [printable(group.name), *members] for group, members in groups if len(members) >= group.fewest
        ],
        "linkType": "both",
        "clickedId": "",
        "sg_pos": "",
        "clerps": [
            [ids[label.node], printable(label.text)]
            for label in annotations.labels
            if shown is None or label.node in shown
        ],
    }


def kept_edges(circuit: Circuit, kept: PrunedNodes) -> list[tuple[int, int, float]]:
    """Return `(source, target, weight)` of the edges that survive pruning, node indices."""
    source, target = array("i", circuit.edges.source.data), array("i", circuit.edges.target.data)
    weight = array("f", circuit.edges.weight.data)
    return [(source[index], target[index], weight[index]) for index in kept.edges]


def _node(
    node: Node,
    identity: str,
    column: int,
    of_sets: tuple[int, int],
    cumulative: float,
    label: str,
    is_target: bool,
    of_logits: bool,
) -> dict[str, Any]:
    """Write a node; `of_sets` is the place of its set, and how many there are.

    A target whose probability is not known has none in the file: its absence is read back as such.
    """
    is_feature, is_logit = node.kind is NodeKind.FEATURE, node.kind is NodeKind.LOGIT
    probability = node.activation if is_logit and of_logits else 0.0
    return {
        "node_id": identity,
        "feature": _feature_number(node, *of_sets),
        "layer": "E" if node.kind is NodeKind.TOKEN else str(node.layer + is_logit),
        "ctx_idx": column,
        "feature_type": _FEATURE_TYPES[node.kind],
        **({"token_prob": probability} if isfinite(probability) else {}),
        "is_target_logit": is_target,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": _js_node_id(node, of_sets[0], column),
        "clerp": printable(label),
        "influence": cumulative,
        "activation": node.activation if is_feature and isfinite(node.activation) else None,
    }


def _feature_number(node: Node, place: int, sets: int) -> int:
    match node.kind:
        case NodeKind.FEATURE if place:
            return -2 - _cantor(node.layer * (sets - 1) + place - 1, node.feature)
        case NodeKind.FEATURE:
            return _cantor(node.layer, node.feature)
        case NodeKind.ERROR:
            return -1
        case NodeKind.TOKEN:
            return node.position
        case NodeKind.LOGIT:
            return node.feature


def _js_node_id(node: Node, place: int, column: int) -> str:
    match node.kind:
        case NodeKind.FEATURE if place:
            return f"{node.layer}_{node.feature}_{place}-0"
        case NodeKind.FEATURE:
            return f"{node.layer}_{node.feature}-0"
        case NodeKind.ERROR if node.feature == -1:
            return f"{node.layer}_{column}-0"
        case NodeKind.ERROR:
            return f"{node.layer}_{node.feature}_{column}-0"
        case NodeKind.TOKEN:
            return f"E_{node.feature}-{column}"
        case NodeKind.LOGIT:
            return f"L_{node.feature}-{column}"


def _cantor(layer: int, feature: int) -> int:
    """Pair two numbers into one, as the viewer's feature links expect."""
    return (layer + feature) * (layer + feature + 1) // 2 + feature
