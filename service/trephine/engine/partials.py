"""What a watcher sees of a graph that is still growing."""

from __future__ import annotations

import torch
from torch import Tensor

from trephine.domain.partials import SHOWN_EDGES, SHOWN_NODES, PartialCircuit, PartialEdge, PartialNode
from trephine.engine.growing import Flow, GrowingGraph, Ranking
from trephine.engine.influence import LOGIT


def partial_circuit(graph: GrowingGraph, flow: Flow, ranking: Ranking) -> PartialCircuit:
    """Return the top of a growing graph: its strongest expanded features and what runs between them.

    Args:
        graph: The expanded rows, the targets' among them.
        flow: All their large entries.
        ranking: Influences over them.
    """
    mass = ranking.neurons[graph.expanded]
    strongest = mass.argsort(descending=True, stable=True)[:SHOWN_NODES]
    shown = graph.expanded[strongest].cpu()
    whole, inside = float(ranking.all_neurons), float(mass.sum())
    return PartialCircuit(
        nodes=_nodes(shown, mass[strongest], graph),
        edges=_edges(graph, flow, shown),
        inside=min(1.0, inside / whole) if whole > 0 else 0.0,
        expanded=graph.n_expanded,
    )


def _nodes(shown: Tensor, influence: Tensor, graph: GrowingGraph) -> tuple[PartialNode, ...]:
    columns = [column.tolist() for column in (*graph.space.split(shown), influence)]
    return tuple(
        PartialNode(layer=layer, position=position, feature=index, influence=share)
        for layer, position, index, share in zip(*columns, strict=True)
    )


def _edges(graph: GrowingGraph, flow: Flow, shown: Tensor) -> tuple[PartialEdge, ...]:
    """Return the heaviest entries between shown features, and from them into what is explained."""
    place = {cell: number for number, cell in enumerate(shown.tolist())}
    target = torch.tensor([-1 if cell <= LOGIT else place.get(cell, -2) for cell in graph.cells])
    source = torch.full((graph.space.count,), -1, device=graph.device)
    source[shown.to(graph.device)] = torch.arange(len(shown), device=graph.device)
    into, out_of = target.to(graph.device)[flow.row], source[flow.source]
    size = torch.where((into > -2) & (out_of >= 0), flow.weight.abs(), 0.0)
    heaviest = size.sort(descending=True, stable=True) if len(size) <= SHOWN_EDGES else size.topk(SHOWN_EDGES)
    best = heaviest.indices[heaviest.values > 0]
    columns = [column[best].tolist() for column in (out_of, into, flow.weight)]
    return tuple(
        PartialEdge(source=source, target=target, weight=weight)
        for source, target, weight in zip(*columns, strict=True)
    )
