"""A circuit as one self-contained page: layers upwards, positions across, details of a node beside."""

from __future__ import annotations

from array import array
from collections.abc import Collection
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from trephine.domain.circuits import Circuit, Node, NodeKind, PrunedNodes
from trephine.domain.sites import FeatureRef
from trephine.pages.circuit_json import kept_edges
from trephine.pages.embed import asset, content_policy, json_island, printable
from trephine.pages.feature_page import feature_file

_TEMPLATES = Environment(autoescape=True)


def circuit_html(
    circuit: Circuit, kept: PrunedNodes, *, name: str, pages: Collection[FeatureRef] = ()
) -> str:
    """Return the page. It loads nothing, and nothing in the circuit's texts can run.

    Args:
        circuit: What was discovered.
        kept: Which nodes and edges survive pruning.
        name: Resource name, shown.
        pages: Features whose own pages lie beside this one; the side panel links to them.
    """
    script = asset("circuit.js")
    against = None if circuit.against is None else printable(circuit.against.display)
    target = printable(circuit.target.display)
    return _TEMPLATES.from_string(asset("circuit.html")).render(
        policy=content_policy(script),
        style=Markup(asset("look.css") + asset("circuit.css")),  # noqa: S704  our own files
        script=Markup(script),  # noqa: S704  our own file
        data=json_island(_document(circuit, kept, name, pages)),
        goal=target if against is None else f"{target} against {against}",
        target=target,
        against=against,
        prompt=printable(circuit.prompt),
    )


def _document(
    circuit: Circuit, kept: PrunedNodes, name: str, pages: Collection[FeatureRef]
) -> dict[str, Any]:
    rows = _rows(circuit)
    place = {index: number for number, index in enumerate(kept.nodes)}
    quality = circuit.quality
    return {
        "name": name,
        "model": circuit.model,
        "weights": circuit.weight_hash,
        "rule": circuit.edge_rule,
        "replacement": circuit.replacement,
        "tokens": [printable(token.display) for token in circuit.tokens],
        "nodes": [_node(circuit.nodes[index], rows.get(index), pages) for index in kept.nodes],
        "edges": [
            [place[source], place[target], weight] for source, target, weight in kept_edges(circuit, kept)
        ],
        "all": {"nodes": len(circuit.nodes), "edges": circuit.edges.source.shape[0]},
        "figures": {
            "baseline": circuit.figures.baseline,
            "selected": circuit.figures.selected_share,
            "error": circuit.figures.error_share,
            "active": circuit.figures.active_features,
        },
        "quality": None
        if quality is None
        else {
            "nodes": quality.nodes,
            "slope": [quality.slope, quality.slope_low, quality.slope_high],
            "spearman": [quality.spearman, quality.spearman_low, quality.spearman_high],
            "edge_slope": [quality.edge_slope, quality.edge_slope_low, quality.edge_slope_high],
            "edge_spearman": [
                quality.edge_spearman,
                quality.edge_spearman_low,
                quality.edge_spearman_high,
            ],
            "how": quality.how,
        },
        "caveats": [printable(caveat) for caveat in circuit.caveats],
    }


def _node(node: Node, row: dict[str, float] | None, pages: Collection[FeatureRef]) -> dict[str, Any]:
    feature = FeatureRef(replacement=node.replacement, layer=node.layer, index=node.feature)
    return {
        "kind": node.kind.value,
        "layer": node.layer,
        "position": node.position,
        "feature": node.feature,
        "activation": node.activation,
        "influence": node.influence,
        "effect": node.effect,
        "label": printable(node.label),
        "promotes": [printable(text) for text in node.promotes],
        "suppresses": [printable(text) for text in node.suppresses],
        "row": row,
        "target": node.kind is NodeKind.LOGIT,
        "page": feature_file(feature) if feature in pages else None,
    }


def _rows(circuit: Circuit) -> dict[int, dict[str, float]]:
    """Bias, remainder and total of every target row, by node index."""
    columns = {
        "total": array("f", circuit.rows.total.data),
        "bias": array("f", circuit.rows.bias.data),
        "remainder": array("f", circuit.rows.remainder.data),
    }
    return {
        node: {title: column[place] for title, column in columns.items()}
        for place, node in enumerate(array("i", circuit.rows.target.data))
    }
