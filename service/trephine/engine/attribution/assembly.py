"""From expanded rows to the nodes and edges of a circuit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.arrays import Array
from trephine.domain.circuits import Edges, Rows
from trephine.engine.attribution.expansion import Expansion
from trephine.engine.attribution.influence import LOGIT, Row


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOrder:
    """Which sources are nodes, and their numbers: features by cell, errors, tokens, targets."""

    features: Tensor
    """int64 `(n_features,)`, cells, ascending."""
    errors: Tensor
    """int64 `(n_errors,)`, error sources, ascending."""
    n_pos: int
    n_targets: int = 1

    @property
    def first_error(self) -> int:
        """Number of the first error node."""
        return len(self.features)

    @property
    def first_token(self) -> int:
        """Number of the first token node."""
        return self.first_error + len(self.errors)

    @property
    def logit(self) -> int:
        """Number of the first target."""
        return self.first_token + self.n_pos


def order_nodes(expansion: Expansion) -> NodeOrder:
    """Number the nodes: every expanded feature, every error source with influence, every token."""
    features = torch.tensor(sorted(row.cell for row in expansion.rows if row.cell > LOGIT), dtype=torch.int64)
    errors = expansion.influence.errors.nonzero().flatten()
    return NodeOrder(
        features=features,
        errors=errors,
        n_pos=expansion.cells.n_pos,
        n_targets=len(expansion.rows) - len(features),
    )


def assemble(
    expansion: Expansion, order: NodeOrder, *, edge_mass: float, max_edges: int
) -> tuple[Edges, Rows]:
    """Keep each row's largest edges between nodes; everything else goes into its remainder.

    Args:
        expansion: The rows.
        order: The nodes.
        edge_mass: Share of a row's whole absolute mass up to which its largest edges are kept.
        max_edges: Edges kept per row at most.

    Returns:
        The edges, sorted by target, and one entry per row, in the same order. Kept edges, bias and
        remainder of a row sum to its total.
    """
    source, target, weight, entries = [], [], [], []
    for number, row in sorted((_number(row, order), row) for row in expansion.rows):
        nodes, weights = _node_edges(row, order)
        kept = _largest(weights, edge_mass * row.mass, max_edges)
        source.append(nodes[kept])
        target.append(torch.full((len(kept),), number))
        weight.append(weights[kept])
        remainder = row.total - row.bias - float(weights[kept].double().sum())
        entries.append((number, row.total, row.bias, remainder))
    edges = Edges(
        source=_int32(torch.cat(source)), target=_int32(torch.cat(target)), weight=_float32(torch.cat(weight))
    )
    numbers, totals, biases, remainders = zip(*entries, strict=True)
    return edges, Rows(
        target=_int32(torch.tensor(numbers)),
        total=_float32(torch.tensor(totals)),
        bias=_float32(torch.tensor(biases)),
        remainder=_float32(torch.tensor(remainders)),
    )


def _number(row: Row, order: NodeOrder) -> int:
    if row.cell <= LOGIT:
        return order.logit + LOGIT - row.cell
    return int(torch.searchsorted(order.features, row.cell))


def _node_edges(row: Row, order: NodeOrder) -> tuple[Tensor, Tensor]:
    """Return the row's sources that are nodes, by number, and their weights."""
    place = torch.searchsorted(order.features, row.sources).clamp_max(max(0, len(order.features) - 1))
    is_node = (
        order.features[place] == row.sources
        if len(order.features)
        else torch.zeros(len(row.sources), dtype=torch.bool)
    )
    nodes = torch.cat(
        [
            place[is_node],
            order.first_error + torch.arange(len(order.errors)),
            order.first_token + torch.arange(order.n_pos),
        ]
    )
    weights = torch.cat([row.weights[is_node], row.errors[order.errors], row.tokens])
    return nodes[weights != 0], weights[weights != 0]


def _largest(weights: Tensor, mass: float, count: int) -> Tensor:
    """Return the indices of the largest weights, largest first, until `mass` or `count` is reached."""
    ordered = weights.abs().sort(descending=True, stable=True)
    needed = int((ordered.values.double().cumsum(0) < mass).sum()) + 1
    return ordered.indices[: min(needed, count)]


def _int32(values: Tensor) -> Array:
    data = values.to(torch.int32).contiguous().numpy().tobytes()
    return Array(dtype="int32", shape=tuple(values.shape), data=data)


def _float32(values: Tensor) -> Array:
    data = values.to(torch.float32).contiguous().numpy().tobytes()
    return Array(dtype="float32", shape=tuple(values.shape), data=data)
