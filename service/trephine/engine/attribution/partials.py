"""What a watcher sees of a graph that is still growing."""

from __future__ import annotations

import torch
from torch import Tensor

from trephine.domain.partials import SHOWN_EDGES, SHOWN_NODES, PartialCircuit, PartialEdge, PartialNode
from trephine.engine.attribution.growing import GrowingGraph, Ranking
from trephine.engine.attribution.influence import LOGIT


def partial_circuit(graph: GrowingGraph, ranking: Ranking) -> PartialCircuit:
    """Return the top of a growing graph: its strongest expanded features and what runs between them.

    Args:
        graph: The expanded rows, the targets' among them.
        ranking: Influences over them.
    """
    expanded = graph.expanded
    mass = ranking.neurons[expanded]
    strongest = mass.argsort(descending=True, stable=True)[:SHOWN_NODES]
    shown = expanded[strongest].cpu()
    whole, inside = float(ranking.all_neurons), float(mass.sum())
    return PartialCircuit(
        nodes=_nodes(shown, mass[strongest], graph),
        edges=_edges(graph, shown),
        inside=min(1.0, inside / whole) if whole > 0 else 0.0,
        expanded=graph.n_expanded,
    )


def _nodes(shown: Tensor, influence: Tensor, graph: GrowingGraph) -> tuple[PartialNode, ...]:
    _, position, _ = graph.space.split(shown)
    columns = (graph.space.refs(shown), position.tolist(), influence.tolist())
    return tuple(
        PartialNode(
            layer=ref.layer,
            position=place,
            feature=ref.index,
            influence=share,
            replacement=ref.replacement,
        )
        for ref, place, share in zip(*columns, strict=True)
    )


def _edges(graph: GrowingGraph, shown: Tensor) -> tuple[PartialEdge, ...]:
    """Return the heaviest entries between shown features, and from them into what is explained."""
    place = {cell: number for number, cell in enumerate(shown.tolist())}
    into = torch.tensor([-1 if cell <= LOGIT else place.get(cell, -2) for cell in graph.cells])
    into = into.to(graph.device)
    out_of = torch.full((graph.space.count,), -1, dtype=torch.int32, device=graph.device)
    out_of[shown.to(graph.device)] = torch.arange(len(shown), dtype=torch.int32, device=graph.device)
    columns: list[tuple[Tensor, Tensor, Tensor]] = []
    for piece in graph.pieces:
        source = out_of[piece.sources]
        among = (source >= 0).nonzero().flatten()
        target = into[piece.rows_of(among) + piece.first]
        columns.append((source[among], target, piece.weights[among]))
    source, target, weight = (torch.cat(column) for column in zip(*columns, strict=True))
    size = torch.where(target > -2, weight.abs(), 0.0)
    heaviest = size.topk(min(SHOWN_EDGES, len(size)))
    best = heaviest.indices[heaviest.values > 0]
    return tuple(
        PartialEdge(source=own, target=other, weight=value)
        for own, other, value in zip(
            *(column[best].tolist() for column in (source, target, weight)), strict=True
        )
    )
