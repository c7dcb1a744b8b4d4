"""A circuit of a behaviour as a graph of the circuit-tracer schema, which servers store and files hold."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from trephine.client.errors import InvalidRequestError
from trephine.client.types import ContextCircuit, DatasetCircuit, DatasetNode, PositionRule

_NEURONS, _HEADS, _ERRORS = "neurons", "heads", ":errors"
_METRIC = -1
_EVERYWHERE = "every position"
_NO_POSITION: Mapping[str, Any] = {"no_position": True}
"""The schema places every node: this says that where it does is for drawing alone."""
_TARGET: Mapping[str, Any] = {
    "kind": "logit",
    "label": "right less wrong answers",
    "position": -1,
    "share": 1.0,
    "value": None,
}


def chosen_circuit(found: DatasetCircuit, label: str) -> ContextCircuit:
    """Return the circuit of all contexts, `all`, or of one cluster, `cluster 1`.

    Raises:
        InvalidRequestError: If there is none of that label, it is empty, or it has no edges.
    """
    named = {one.label: one for one in found.circuits}
    if label not in named:
        raise InvalidRequestError(
            f"{found.name} has no circuit {label!r}; it has {', '.join(map(repr, named))}", field="circuit"
        )
    if not named[label].nodes:
        raise InvalidRequestError(
            f"the circuit {label!r} of {found.name} has no nodes, so that there is no graph", field="circuit"
        )
    if not named[label].edges:
        raise InvalidRequestError(
            f"the circuit {label!r} of {found.name} has no edges, so that there is no graph: they are not "
            "looked for with edge_nodes 0, nor between nodes on the stream or on MLP outputs",
            field="circuit",
        )
    return named[label]


def graph_document(found: DatasetCircuit, label: str) -> dict[str, Any]:
    """Return the graph: nodes with the labels that tell their effects, edges, and the metric above them.

    Signs are those of graphs, positive if for the answers; a patch takes that off the metric. Positions are
    those of the contexts, which have no tokens in common; where they are summed nodes lie at none.

    Raises:
        InvalidRequestError: As `chosen_circuit`.
    """
    circuit = chosen_circuit(found, label)
    sets = tuple(dict.fromkeys((found.replacement, *(_set_of(node) for node in circuit.nodes))))
    last = max(0, *(node.position for node in circuit.nodes))
    top = 2 + max((*found.layers, *(node.feature.layer for node in circuit.nodes)))
    ids = {place: _node_id(node, sets) for place, node in enumerate(circuit.nodes)}
    ids[_METRIC] = f"{top}_0_{last}"
    return {
        "metadata": {
            "slug": found.name.replace("/", "-"),
            "scan": f"{found.version.model.removeprefix('models/')}/{'+'.join(sets)}",
            "prompt": "",
            "prompt_tokens": _tokens(found, last),
            "transcoder_list": [],
            "node_threshold": 1.0,
            "schema_version": 1,
            "info": {
                "creator_name": "trephine",
                "generator": {"name": "trephine"},
                "weight_hash": found.version.weight_hash,
                "targets": [_TARGET],
                "caveats": _caveats(found, circuit),
                "nodes": {
                    **{ids[place]: _figures(node) for place, node in enumerate(circuit.nodes)},
                    ids[_METRIC]: _NO_POSITION,
                },
            },
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": [
            *(_node(node, ids[place], sets) for place, node in enumerate(circuit.nodes)),
            _metric(ids[_METRIC], top, last),
        ],
        "links": [
            {"source": ids[edge.source], "target": ids[edge.target], "weight": -edge.weight}
            for edge in circuit.edges
        ],
    }


def _figures(node: DatasetNode) -> dict[str, Any]:
    """What the schema has no place for: the effect, and that it lies at no single position."""
    return {
        **({"effect": -node.effect} if isfinite(node.effect) else {}),
        **(_NO_POSITION if node.position < 0 else {}),
    }


def _set_of(node: DatasetNode) -> str:
    return node.feature.replacement or _NEURONS


def _tokens(found: DatasetCircuit, last: int) -> list[str]:
    kept = found.positions is PositionRule.KEPT
    return [f"position {place}" for place in range(last + 1)] if kept else [_EVERYWHERE]


def _node_id(node: DatasetNode, sets: tuple[str, ...]) -> str:
    place = sets.index(_set_of(node))
    plain = f"{node.feature.layer}_{node.feature.index}_{max(0, node.position)}"
    return f"{plain}_{place}" if place else plain


def _node(node: DatasetNode, identity: str, sets: tuple[str, ...]) -> dict[str, Any]:
    layer, index, place = node.feature.layer, node.feature.index, sets.index(_set_of(node))
    said = f"{_called(node)}, effect {-node.effect:+.3f}" + ("" if node.stable else ", not stable")
    return {
        **_plain(identity, layer, max(0, node.position), said),
        "feature": -2 - _paired(layer * (len(sets) - 1) + place - 1, index)
        if place
        else _paired(layer, index),
        "feature_type": "cross layer transcoder",
        "jsNodeId": f"{layer}_{index}_{place}-0" if place else f"{layer}_{index}-0",
    }


def _plain(identity: str, layer: int, position: int, said: str) -> dict[str, Any]:
    """What every node of the schema has; influences follow from the edges when it is read."""
    return {
        "node_id": identity,
        "layer": str(layer),
        "ctx_idx": position,
        "clerp": said,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "influence": 0.0,
        "activation": None,
    }


def _paired(layer: int, index: int) -> int:
    """Cantor's pairing, which the schema numbers features by."""
    return (layer + index) * (layer + index + 1) // 2 + index


def _called(node: DatasetNode) -> str:
    name, layer, index = _set_of(node), node.feature.layer, node.feature.index
    if name == _HEADS:
        return f"head {layer}.{index}"
    if name.endswith(_ERRORS):
        return f"error {layer}"
    return f"{'neuron' if name == _NEURONS else 'feature'} {layer}:{index}"


def _metric(identity: str, top: int, position: int) -> dict[str, Any]:
    return {
        **_plain(identity, top, position, str(_TARGET["label"])),
        "feature": 0,
        "feature_type": "logit",
        "is_target_logit": True,
        "jsNodeId": f"L_0-{position}",
    }


def _caveats(found: DatasetCircuit, circuit: ContextCircuit) -> list[str]:
    return [
        f"The circuit {circuit.label!r} of {found.name}, over {circuit.training} contexts: no single prompt. "
        "What was measured of it on held-out contexts stands there.",
        "An edge is what patching its source takes from the answers through its target, in logits, mean "
        "over contexts. Edges into one node do not add up to anything, and only the strongest nodes have "
        "some.",
        "Influence follows edges down, so that the lowest nodes collect it: go by the effects, and keep "
        "nodes by name when pruning.",
        *found.caveats,
    ]
