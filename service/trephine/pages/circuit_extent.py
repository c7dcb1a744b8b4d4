"""How much of a circuit its page shows: figures are of the whole graph, whatever part of it is looked at."""

from __future__ import annotations

from typing import Any

from trephine.domain.circuit_queries import Provenance
from trephine.domain.circuits import Circuit, NodeKind, PrunedNodes
from trephine.pages.embed import printable


def told_extent(circuit: Circuit, kept: PrunedNodes, provenance: Provenance) -> dict[str, Any]:
    """Return what the page says of what is not on it.

    `part` is true where figures are of more than is shown, `of` names what its counts are held against, and
    `told` are sentences: how the stored circuit was cut, and how the page.
    """
    stored, shown = _stored(circuit, provenance), _shown(circuit, kept)
    return {
        # Figures of an imported circuit are not those of the graph that its file was written from.
        "part": bool(shown or (stored and provenance.origin != "imported")),
        "of": "those stored" if stored or provenance.origin != "discovered" else "found",
        "told": [printable(one) for one in (*stored, *shown)],
    }


def _stored(circuit: Circuit, provenance: Provenance) -> list[str]:
    """How the stored circuit became a part of a larger one, if it did."""
    features = sum(node.kind is NodeKind.FEATURE for node in circuit.nodes)
    chosen = circuit.figures.selected_features
    left = f"{features:,} of {chosen:,} features are left" if features < chosen else ""
    match provenance.origin:
        case "pruned":
            parent = provenance.parent + (", which was imported" if provenance.foreign else "")
            return [f"Pruned from {parent}: {_joined(provenance.how, left)}."]
        case "imported":
            return [f"Imported, {provenance.how}: it may be a part of a larger graph."]
        case "discovered":
            how = _joined(provenance.how, left)
            return [f"Pruned when it was found: {how}."] if how else []


def _shown(circuit: Circuit, kept: PrunedNodes) -> list[str]:
    """How the page was cut."""
    nodes, edges = len(circuit.nodes), circuit.edges.source.shape[0]
    if (len(kept.nodes), len(kept.edges)) == (nodes, edges):
        return []
    return [
        f"Shown: {len(kept.nodes):,} of {nodes:,} nodes and {len(kept.edges):,} of {edges:,} edges (pruned: "
        f"nodes that together carry {_percent(kept.node_threshold)} of the influence, edges that carry "
        f"{_percent(kept.edge_threshold)}; targets, tokens and pinned nodes stay)."
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
