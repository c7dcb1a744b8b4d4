"""What a watcher sees of a graph that is still growing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trephine.domain.partials import SHOWN_EDGES, SHOWN_NODES, PartialCircuit, PartialEdge, PartialNode
from trephine.engine.influence import LOGIT, Influence, Row, Space


def partial_circuit(rows: Sequence[Row], space: Space, influence: Influence) -> PartialCircuit:
    """Return the top of a growing graph: its strongest expanded features and what runs between them.

    Args:
        rows: The expanded rows, the targets' among them.
        space: Addresses of the features.
        influence: Over these rows.
    """
    expanded = torch.tensor([row.cell for row in rows if row.cell > LOGIT], dtype=torch.int64)
    mass = influence.neurons[expanded]
    shown = expanded[mass.argsort(descending=True, stable=True)[:SHOWN_NODES]]
    inside = float(mass.sum()) / influence.all_neurons if influence.all_neurons > 0 else 0.0
    return PartialCircuit(
        nodes=_nodes(shown, space, influence),
        edges=_edges(rows, shown, space),
        inside=min(1.0, inside),
        expanded=len(expanded),
    )


def _nodes(shown: Tensor, space: Space, influence: Influence) -> tuple[PartialNode, ...]:
    columns = [column.tolist() for column in (*space.split(shown), influence.neurons[shown])]
    return tuple(
        PartialNode(layer=layer, position=position, feature=index, influence=share)
        for layer, position, index, share in zip(*columns, strict=True)
    )


def _edges(rows: Sequence[Row], shown: Tensor, space: Space) -> tuple[PartialEdge, ...]:
    place = torch.full((space.count,), -1, dtype=torch.int32)
    place[shown] = torch.arange(len(shown), dtype=torch.int32)
    edges = [
        PartialEdge(source=source, target=-1 if row.cell <= LOGIT else int(place[row.cell]), weight=weight)
        for row in rows
        if row.cell <= LOGIT or place[row.cell] >= 0
        for source, weight in _between(row, place)
    ]
    edges.sort(key=lambda edge: -abs(edge.weight))
    return tuple(edges[:SHOWN_EDGES])


def _between(row: Row, place: Tensor) -> list[tuple[int, float]]:
    """The row's large sources that are shown, by their number, and their weights."""
    number = place[row.sources[: row.ranked]]
    among = number >= 0
    return list(zip(number[among].tolist(), row.weights[: row.ranked][among].tolist(), strict=True))
