"""What a circuit's page holds: columns of numbers as base64, texts once each, figures as they are.

50,000 edges are 400 kB this way; as JSON objects they would be 4 MB and a second of parsing. The columns
are little-endian; `assets/circuit/graph.js` reads them. Ids, labels and cumulative influences are those of
the JSON document (`circuit_json`), so that the page cannot say anything else.
"""

from __future__ import annotations

import json
import sys
from array import array
from base64 import b64encode
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from trephine.domain.circuit_annotations import NO_ANNOTATIONS
from trephine.domain.circuit_queries import DISCOVERED, Provenance
from trephine.domain.circuits import Circuit, EstimateQuality, Node, NodeKind, PrunedNodes
from trephine.domain.error_sites import ERROR_SITES
from trephine.domain.features import FeatureDescription
from trephine.domain.findings import Figure
from trephine.domain.global_figures import GlobalFigures
from trephine.domain.sites import FeatureRef
from trephine.pages.circuit_extent import told_extent
from trephine.pages.circuit_figures import UNKNOWN, entering_rows
from trephine.pages.circuit_json import document_nodes, kept_edges, set_places, view_of
from trephine.pages.embed import printable
from trephine.pages.feature_card import feature_card
from trephine.pages.feature_page import feature_file

_KINDS = tuple(kind.value for kind in NodeKind)


def page_data(
    circuit: Circuit,
    kept: PrunedNodes,
    *,
    name: str,
    pages: Collection[FeatureRef] = (),
    features: Iterable[FeatureDescription] = (),
    view: Mapping[str, Any] | None = None,
    provenance: Provenance = DISCOVERED,
) -> dict[str, Any]:
    """Return the data of a page; everything in it is safe to encode as JSON.

    Args:
        circuit: What was discovered.
        kept: Which nodes and edges survive pruning.
        name: Resource name, shown.
        pages: Features whose own pages lie beside this one.
        features: What is known of features; shown in the side panel.
        view: `qParams` of the JSON document: pins, supernodes and labels. None takes the document's own.
        provenance: Where the circuit came from; the page says whether it is a part of a larger one.
    """
    documented = document_nodes(circuit, kept)
    said = view_of(circuit, NO_ANNOTATIONS) if view is None else view
    nodes, texts = [circuit.nodes[index] for index in kept.nodes], _Texts()
    quality = circuit.quality
    return {
        "name": name,
        "model": circuit.model,
        "weights": circuit.weight_hash,
        "rule": circuit.edge_rule,
        "sets": [printable(name) for name in circuit.set_names],
        "tokens": [printable(token.display) for token in circuit.tokens],
        "kinds": _KINDS,
        "sites": ERROR_SITES,
        "ids": [node["node_id"] for node in documented],
        "nodes": _node_columns(circuit, kept, nodes, documented, texts),
        "edges": _edge_columns(circuit, kept),
        "texts": texts.all,
        "pages": {
            str(place): feature_file(feature)
            for place, feature in enumerate(map(_feature, nodes))
            if nodes[place].kind is NodeKind.FEATURE and feature in pages
        },
        **_cards(nodes, features),
        "view": _view(said),
        "all": {"nodes": len(circuit.nodes), "edges": circuit.edges.source.shape[0]},
        "units": circuit.units,
        "shares": _shares(circuit, kept),
        "extent": told_extent(circuit, kept, provenance),
        "figures": {
            "baseline": circuit.figures.baseline,
            "selected": circuit.figures.selected_share,
            "error": circuit.figures.error_share,
            "active": circuit.figures.active_features,
        },
        "quality": None if quality is None else _quality(quality),
        "across": None if circuit.across is None else _across(circuit.across),
        "caveats": [printable(caveat) for caveat in circuit.caveats],
    }


def _cards(nodes: Sequence[Node], features: Iterable[FeatureDescription]) -> dict[str, Any]:
    """What is known of features, each once, and the number of its card by a node's place."""
    known = list(features)
    number = {one.view.feature: place for place, one in enumerate(known)}
    named = ((place, _feature(node)) for place, node in enumerate(nodes) if node.kind is NodeKind.FEATURE)
    return {
        "cards": [feature_card(one) for one in known],
        "card": {str(place): number[feature] for place, feature in named if feature in number},
    }


def _shares(circuit: Circuit, kept: PrunedNodes) -> dict[str, float]:
    """Of targets their part of what is explained, by the node's place; their nodes have the same order."""
    ends = [index for index, node in enumerate(circuit.nodes) if node.kind is NodeKind.LOGIT]
    if len(ends) != len(circuit.targets):  # of another tool's file some are not known
        return {}
    share = {index: target.share for index, target in zip(ends, circuit.targets, strict=True)}
    return {str(place): share[index] for place, index in enumerate(kept.nodes) if index in share}


class _Texts:
    """Texts by number, each held once."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._number: dict[str, int] = {}

    def number(self, text: str) -> int:
        shown = printable(text)
        if shown not in self._number:
            self._number[shown] = len(self.all)
            self.all.append(shown)
        return self._number[shown]


def _node_columns(
    circuit: Circuit,
    kept: PrunedNodes,
    nodes: Sequence[Node],
    documented: Sequence[Mapping[str, Any]],
    texts: _Texts,
) -> dict[str, Any]:
    rows, places = entering_rows(circuit, kept), set_places(circuit)
    entering = [rows.get(index, UNKNOWN) for index in kept.nodes]
    return {
        "count": len(nodes),
        "kind": _integers(_KINDS.index(node.kind.value) for node in nodes),
        "layer": _integers(node.layer for node in nodes),
        "position": _integers(node.position for node in nodes),
        "feature": _integers(node.feature for node in nodes),
        "set": _integers(places[index] for index in kept.nodes),
        "activation": _floats(node.activation for node in nodes),
        "influence": _floats(node.influence for node in nodes),
        "effect": _floats(node.effect for node in nodes),
        "cumulative": _floats(node["influence"] for node in documented),
        "total": _floats(row.total for row in entering),
        "bias": _floats(row.bias for row in entering),
        "remainder": _floats(row.remainder for row in entering),
        "label": _integers(texts.number(node["clerp"]) for node in documented),
        "promotes": _lists([[texts.number(text) for text in node.promotes] for node in nodes]),
        "suppresses": _lists([[texts.number(text) for text in node.suppresses] for node in nodes]),
    }


def _edge_columns(circuit: Circuit, kept: PrunedNodes) -> dict[str, Any]:
    """Edges between places among the nodes kept."""
    place = {index: number for number, index in enumerate(kept.nodes)}
    edges = kept_edges(circuit, kept)
    return {
        "count": len(edges),
        "source": _integers(place[source] for source, _, _ in edges),
        "target": _integers(place[target] for _, target, _ in edges),
        "weight": _base64(array("f", (weight for _, _, weight in edges))),
    }


def _view(view: Mapping[str, Any]) -> dict[str, Any]:
    """Pins, supernodes and labels of a document's `qParams`; what is missing there is empty."""
    clerps = view.get("clerps") or ()
    if isinstance(clerps, str):  # the viewer's address holds them as JSON
        clerps = json.loads(clerps)
    labels = clerps.items() if isinstance(clerps, Mapping) else clerps
    return {
        "pinned": [str(one) for one in view.get("pinnedIds") or ()],
        "groups": [
            {"label": printable(str(label)), "members": [str(one) for one in members]}
            for label, *members in view.get("supernodes") or ()
        ],
        "labels": {str(identity): printable(str(label)) for identity, label in labels},
    }


def _quality(quality: EstimateQuality) -> dict[str, Any]:
    return {
        "nodes": quality.nodes,
        "slope": [quality.slope, quality.slope_low, quality.slope_high],
        "spearman": [quality.spearman, quality.spearman_low, quality.spearman_high],
        "edge_slope": [quality.edge_slope, quality.edge_slope_low, quality.edge_slope_high],
        "edge_spearman": [quality.edge_spearman, quality.edge_spearman_low, quality.edge_spearman_high],
        "how": printable(quality.how),
    }


def _across(figures: GlobalFigures) -> dict[str, Any]:
    coverage = figures.coverage
    return {
        "training": figures.training,
        "held_out": figures.held_out,
        "candidates": figures.candidates,
        "active": figures.active_features,
        "overlap": figures.split_half_overlap,
        "coverage": None if coverage is None else _interval(coverage),
        "transfer": [
            {
                "measured": one.measured.value,
                "edges": one.edges,
                "spearman": _interval(one.spearman),
                "how": printable(one.how),
                "comparisons": [
                    [each.baseline.value, _interval(each.spearman), each.standing.value]
                    for each in one.comparisons
                ],
            }
            for one in figures.transfer
        ],
    }


def _interval(figure: Figure) -> list[float | None]:
    return [figure.value, figure.low, figure.high]


def _feature(node: Node) -> FeatureRef:
    return FeatureRef(replacement=node.replacement, layer=node.layer, index=node.feature)


# --- columns ----------------------------------------------------------------------------------


def _integers(numbers: Iterable[int]) -> tuple[int, str]:
    """Return the width in bits, the smallest that holds them all, and the column."""
    column = array("i", numbers)
    if not column or (min(column) >= -(1 << 15) and max(column) < 1 << 15):
        return 16, _base64(array("h", column))
    return 32, _base64(column)


def _floats(values: Iterable[float]) -> str:
    return _base64(array("f", values))


def _lists(lists: Sequence[Sequence[int]]) -> dict[str, tuple[int, str]]:
    """Lists of numbers as one column, and where each begins."""
    starts = accumulate((len(one) for one in lists), initial=0)
    return {
        "start": _integers(starts),
        "item": _integers(number for one in lists for number in one),
    }


def _base64(column: array[Any]) -> str:
    if sys.byteorder == "big":
        column.byteswap()
    return b64encode(column.tobytes()).decode()
