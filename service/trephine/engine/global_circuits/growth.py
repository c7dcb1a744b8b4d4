"""Which candidates become nodes, and which of their edges are kept.

Edges are compared by the share that they are of their target's own size, which has no units: features of
different layers are of very different scales.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.global_circuits import GlobalBounds
from trephine.engine.global_circuits.measured import MeasuredEdges

_SORTED = 1 << 18
"""Strongest edges that are looked through without a start."""
_PER_QUANTUM = 64
"""Nodes that are grown in one quantum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrownCircuit:
    """Nodes and edges, as places among candidates, tokens and logits."""

    features: Tensor
    """int64 `(n_features,)`, places among the candidates, ascending."""
    tokens: Tensor
    """int64 `(n_tokens,)`, places among the tokens, ascending."""
    logits: Tensor
    """int64 `(n_logits,)`, places among the logits: those that are named first, as named."""
    between: tuple[Tensor, Tensor]
    """Sources and targets of the edges between features, places among `features`, by target."""
    from_tokens: tuple[Tensor, Tensor]
    """Places among `tokens` and among `features`."""
    to_logits: tuple[Tensor, Tensor]
    """Places among `features` and among `logits`."""
    to_direction: Tensor
    """Places among `features`."""


def grow(
    edges: MeasuredEdges, start: Sequence[int], named: int, has_direction: bool, bounds: GlobalBounds
) -> Generator[None, None, GrownCircuit]:
    """Choose nodes and edges.

    Args:
        edges: All that were measured.
        start: Places of the candidates that the circuit is grown from.
        named: Of the logits how many, the first, it is grown from.
        has_direction: Whether it is grown from a direction.
        bounds: How large it may be.
    """
    shares = edges.shares.cpu()
    yield None
    if start or named or has_direction:
        features = yield from _from_start(edges, shares, start, named, has_direction, bounds.nodes)
    else:
        features = strongest_nodes(shares, bounds.nodes)
    yield None
    tokens, from_tokens = _below(edges, features, bounds)
    logits, to_logits = _above(edges, features, named, bounds)
    direction = edges.to_direction.cpu()[features]
    return GrownCircuit(
        features=features,
        tokens=tokens,
        logits=logits,
        between=heaviest_into(edges.weight.cpu()[features][:, features], bounds.edges_per_node),
        from_tokens=from_tokens,
        to_logits=to_logits,
        to_direction=heaviest_into(direction[:, None], bounds.edges_per_node)[0],
    )


def strongest_nodes(shares: Tensor, most: int) -> Tensor:
    """Return the ends of the strongest edges, as many as there may be: int64 `(n_nodes,)`, ascending."""
    n, flat = len(shares), shares.flatten()
    best = flat.topk(min(_SORTED, len(flat)))
    taken: set[int] = set()
    for place in best.indices[best.values > 0].tolist():
        added = {place // n, place % n} - taken
        if len(taken) + len(added) <= most:
            taken |= added
        if len(taken) == most:
            break
    return torch.tensor(sorted(taken), dtype=torch.int64)


def _from_start(
    edges: MeasuredEdges, shares: Tensor, start: Sequence[int], named: int, has_direction: bool, most: int
) -> Generator[None, None, Tensor]:
    """Take the candidate with the strongest path to what is there, again and again.

    A path is worth the product of s / (1 + s) over its edges' shares s: no edge makes it longer, and of two
    shares above 1, where effects of others cancel, the larger one still wins.
    """
    shares = shares / (1 + shares)
    reached = torch.zeros(len(shares))
    reached[list(start)] = 1.0
    for column in _columns(edges, named, has_direction):
        reached = torch.maximum(reached, column / column.max().clamp_min(1e-30))
    taken = torch.zeros(len(shares), dtype=torch.bool)
    while int(taken.sum()) < most:
        node = int(reached.masked_fill(taken, -1.0).argmax())
        if taken[node] or reached[node] <= 0:
            break
        taken[node] = True
        reached = torch.maximum(reached, reached[node] * torch.maximum(shares[:, node], shares[node]))
        if int(taken.sum()) % _PER_QUANTUM == 0:
            yield None
    return taken.nonzero()[:, 0]


def _columns(edges: MeasuredEdges, named: int, has_direction: bool) -> list[Tensor]:
    columns = list(edges.to_logits[:, :named].abs().cpu().T)
    return [*columns, edges.to_direction.abs().cpu()] if has_direction else columns


def heaviest_into(weight: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return ends of the heaviest edges into every target of `(n_sources, n_targets)`, by target."""
    if not weight.numel():
        nothing = torch.zeros(0, dtype=torch.int64)
        return nothing, nothing
    best = weight.abs().topk(min(most, len(weight)), dim=0)
    place, target = (best.values.T > 0).nonzero(as_tuple=True)[::-1]
    return best.indices[place, target], target


def _below(
    edges: MeasuredEdges, features: Tensor, bounds: GlobalBounds
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return token nodes, those with the strongest edges, and their edges."""
    shares = edges.token_shares.cpu()[:, features]
    tokens = _strongest_rows(shares, bounds.tokens)
    return tokens, heaviest_into(shares[tokens], bounds.edges_per_node)


def _above(
    edges: MeasuredEdges, features: Tensor, named: int, bounds: GlobalBounds
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return logit nodes, those that are named and those with the strongest edges, and their edges."""
    weight = edges.to_logits.cpu()[features]
    others = _strongest_rows(weight[:, named:].abs().T, bounds.logits) + named
    logits = torch.cat([torch.arange(named), others])
    return logits, heaviest_into(weight[:, logits], bounds.edges_per_node)


def _strongest_rows(sizes: Tensor, most: int) -> Tensor:
    """Return the rows of `(n, m)` with the largest entries, ascending; rows without any are left out."""
    if not sizes.numel() or not most:
        return torch.zeros(0, dtype=torch.int64)
    best = sizes.amax(1).topk(min(most, len(sizes)))
    return best.indices[best.values > 0].sort().values
