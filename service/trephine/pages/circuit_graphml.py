"""A circuit as GraphML, for networkx, Gephi, yEd and igraph.

Source of the format: Brandes et al. 2002, http://graphml.graphdrawing.org/primer/graphml-primer.html.
Written as a stream of SAX events: half a million edges need no tree in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from math import isfinite, nan
from xml.sax.saxutils import XMLGenerator
from xml.sax.xmlreader import AttributesImpl

from trephine.domain.circuit_annotations import NO_ANNOTATIONS, Annotations
from trephine.domain.circuits import Circuit, PrunedNodes
from trephine.pages.circuit_figures import UNKNOWN, entering_rows
from trephine.pages.circuit_json import kept_edges, node_ids
from trephine.pages.embed import printable

Value = str | int | float | bool

_NAMESPACE = "http://graphml.graphdrawing.org/xmlns"
_NODE_KEYS = {
    "kind": "string",
    "layer": "int",
    "position": "int",
    "feature": "int",
    "replacement": "string",
    "activation": "double",
    "influence": "double",
    "effect": "double",
    "total": "double",
    "bias": "double",
    "remainder": "double",
    "promotes": "string",
    "suppresses": "string",
    "label": "string",
    "pinned": "boolean",
    "group": "string",
}
_EDGE_KEYS = {"weight": "double", "absolute": "double"}
_GRAPH_KEYS = {"name": "string", "model": "string", "replacement": "string", "edge_rule": "string"} | {
    "prompt": "string",
    "weight_hash": "string",
}


_NO_CHARACTERS = {0xFFFE: "\\ufffe", 0xFFFF: "\\uffff"}


def circuit_graphml(
    circuit: Circuit, kept: PrunedNodes, *, name: str, annotations: Annotations = NO_ANNOTATIONS
) -> bytes:
    """Return the document. Nodes have the ids of the JSON schema; numbers that are not finite are left out.

    The graph's `replacement` names every set that it spans, with `+` between them; a node's is its own.

    Args:
        circuit: What was discovered.
        kept: Which nodes and edges survive pruning.
        name: Resource name.
        annotations: Pins, labels and groups of its nodes.
    """
    stream = BytesIO()
    xml = XMLGenerator(stream, encoding="utf-8", short_empty_elements=True)
    xml.startDocument()
    with _element(xml, "graphml", xmlns=_NAMESPACE):
        for target, keys in (("graph", _GRAPH_KEYS), ("node", _NODE_KEYS), ("edge", _EDGE_KEYS)):
            for key, kind in keys.items():
                attributes = {"id": f"{target}_{key}", "for": target, "attr.name": key, "attr.type": kind}
                with _element(xml, "key", **attributes):
                    pass
        with _element(xml, "graph", id="circuit", edgedefault="directed"):
            _data(xml, "graph", _graph_values(circuit, name))
            _nodes(xml, circuit, kept, annotations)
            _edges(xml, circuit, kept)
    xml.endDocument()
    return stream.getvalue()


def _graph_values(circuit: Circuit, name: str) -> dict[str, Value]:
    return {
        "name": name,
        "model": circuit.model,
        "replacement": "+".join(circuit.set_names),
        "edge_rule": circuit.edge_rule,
        "prompt": circuit.prompt,
        "weight_hash": circuit.weight_hash,
    }


def _nodes(xml: XMLGenerator, circuit: Circuit, kept: PrunedNodes, annotations: Annotations) -> None:
    ids, texts, pinned = node_ids(circuit), annotations.texts, annotations.pinned
    groups = {node: group.name for group in annotations.groups for node in group.nodes}
    rows = entering_rows(circuit, kept)
    for index in kept.nodes:
        node = circuit.nodes[index]
        with _element(xml, "node", id=ids[index]):
            _data(
                xml,
                "node",
                {
                    "kind": node.kind.value,
                    "layer": node.layer,
                    "position": node.position if node.position >= 0 else nan,
                    "feature": node.feature,
                    "replacement": node.replacement,
                    "activation": node.activation,
                    "influence": node.influence,
                    "effect": node.effect,
                    **rows.get(index, UNKNOWN)._asdict(),
                    **_tokens(promotes=node.promotes, suppresses=node.suppresses),
                    "label": texts.get(index, node.label),
                    "pinned": index in pinned,
                    "group": groups.get(index, ""),
                },
            )


def _tokens(**lists: Sequence[str]) -> dict[str, Value]:
    """Lists of tokens as JSON, for GraphML has no lists; empty ones are left out."""
    return {name: json.dumps([printable(one) for one in found]) for name, found in lists.items() if found}


def _edges(xml: XMLGenerator, circuit: Circuit, kept: PrunedNodes) -> None:
    ids = node_ids(circuit)
    for source, target, weight in kept_edges(circuit, kept):
        with _element(xml, "edge", source=ids[source], target=ids[target]):
            _data(xml, "edge", {"weight": weight, "absolute": abs(weight)})


def _data(xml: XMLGenerator, target: str, values: dict[str, Value]) -> None:
    for key, value in values.items():
        if isinstance(value, float) and not isfinite(value):
            continue  # absent is GraphML's way of saying that there is no number
        with _element(xml, "data", key=f"{target}_{key}"):
            xml.characters(_text(value))


def _text(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    # What XML 1.0 cannot hold, controls and lone surrogates, is shown as an escape.
    return printable(value).translate(_NO_CHARACTERS) if isinstance(value, str) else repr(value)


@contextmanager
def _element(xml: XMLGenerator, name: str, **attributes: str) -> Iterator[None]:
    xml.startElement(name, AttributesImpl(attributes))
    yield
    xml.endElement(name)
