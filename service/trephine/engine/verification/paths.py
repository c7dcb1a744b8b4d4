"""What a stored graph predicts: removed features, followed along its edges up to the target.

An edge's weight is what its source adds to its target. If the source's activation changes by a share of
itself, the target changes by that share of the weight (law 4; for `relp_half` that is the estimate). Features
that are removed together stay removed: none is counted along another's path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trephine.domain.arrays import Array
from trephine.domain.circuits import Circuit, Node, NodeKind
from trephine.domain.sites import LayerRef

_DTYPES = {
    "int32": torch.int32,
    "int64": torch.int64,
    "float32": torch.float32,
    "float64": torch.float64,
}
_CELLS = 1 << 24
"""Removals times edges that are worked on at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A circuit's nodes and edges as tensors, on the CPU."""

    refs: tuple[LayerRef, ...]
    """Layers of sets that have features in it, from the bottom up."""
    owner: Tensor
    """int64 `(n_nodes,)`, which of `refs` a feature is of; logits are above all, what is no target is -1."""
    layer: Tensor
    """int64 `(n_nodes,)`; logits are above all layers, tokens below."""
    position: Tensor
    """int64 `(n_nodes,)`."""
    index: Tensor
    """int64 `(n_nodes,)`, of features; -1 otherwise."""
    is_feature: Tensor
    """bool `(n_nodes,)`."""
    activation: Tensor
    """float64 `(n_nodes,)`."""
    effect: Tensor
    """float64 `(n_nodes,)`, as shown, logits."""
    influence: Tensor
    """float64 `(n_nodes,)`."""
    source: Tensor
    """int64 `(n_edges,)`."""
    target: Tensor
    """int64 `(n_edges,)`."""
    weight: Tensor
    """float64 `(n_edges,)`."""
    logits: Tensor
    """int64 `(n_logits,)`, node indices of targets."""
    gains: Tensor
    """float64 `(n_logits,)`: how much of a target's change is one of what is explained: its share, and for
    attention scores, whose rows are half of their slopes, twice that."""

    @property
    def features(self) -> Tensor:
        """int64 `(n_features,)`, node indices."""
        return self.is_feature.nonzero().flatten()


def graph_of(circuit: Circuit) -> Graph:
    """Read a circuit."""
    kinds = [node.kind for node in circuit.nodes]
    top = 1 + max(node.layer for node in circuit.nodes)
    is_feature = torch.tensor([kind is NodeKind.FEATURE for kind in kinds])
    refs = _refs(circuit)
    number = {ref: place for place, ref in enumerate(refs)}
    return Graph(
        refs=refs,
        owner=torch.tensor([_owner(node, number) for node in circuit.nodes]),
        layer=torch.tensor([top if n.kind is NodeKind.LOGIT else n.layer for n in circuit.nodes]),
        position=torch.tensor([node.position for node in circuit.nodes]),
        index=torch.tensor([n.feature if n.kind is NodeKind.FEATURE else -1 for n in circuit.nodes]),
        is_feature=is_feature,
        activation=torch.tensor([node.activation for node in circuit.nodes], dtype=torch.float64),
        effect=torch.tensor([node.effect for node in circuit.nodes], dtype=torch.float64),
        influence=torch.tensor([node.influence for node in circuit.nodes], dtype=torch.float64),
        source=_tensor(circuit.edges.source).long(),
        target=_tensor(circuit.edges.target).long(),
        weight=_tensor(circuit.edges.weight).double(),
        logits=torch.tensor([i for i, kind in enumerate(kinds) if kind is NodeKind.LOGIT]),
        gains=torch.tensor([one.share * one.slope for one in circuit.targets], dtype=torch.float64),
    )


def _refs(circuit: Circuit) -> tuple[LayerRef, ...]:
    """List layers of sets from the bottom up: within a block as nodes are listed, by what they read."""
    found = dict.fromkeys(_ref(node) for node in circuit.nodes if node.kind is NodeKind.FEATURE)
    return tuple(sorted(found, key=lambda ref: ref.layer))


def _ref(node: Node) -> LayerRef:
    return LayerRef(replacement=node.replacement, layer=node.layer)


def _owner(node: Node, number: Mapping[LayerRef, int]) -> int:
    if node.kind is NodeKind.FEATURE:
        return number[_ref(node)]
    return len(number) if node.kind is NodeKind.LOGIT else -1


def _tensor(array: Array) -> Tensor:
    if not array.data:
        return torch.zeros(array.shape, dtype=_DTYPES[array.dtype])
    return torch.frombuffer(bytearray(array.data), dtype=_DTYPES[array.dtype]).reshape(array.shape)


def permuted(graph: Graph, seed: int) -> Graph:
    """Deal the weights that enter every target out anew among its sources."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(len(graph.weight), generator=generator).argsort()
    order = order[graph.target[order].argsort(stable=True)]  # by target, shuffled within
    place = graph.target.argsort(stable=True)
    weight = torch.empty_like(graph.weight)
    weight[place] = graph.weight[order]
    return replace(graph, weight=weight)


def follow(graph: Graph, removed: Sequence[Sequence[int]]) -> Tensor:
    """Predict the change of every node when features are removed.

    Args:
        graph: The graph.
        removed: Per ablation the node indices that are set to zero.

    Returns:
        float64 `(n_ablations, n_nodes)`, in units of the node; of removed nodes minus their activation.
    """
    size = max(1, _CELLS // max(1, len(graph.weight)))
    parts = [_follow(graph, removed[start : start + size]) for start in range(0, len(removed), size)]
    return torch.cat(parts) if parts else torch.zeros(0, len(graph.layer), dtype=torch.float64)


def _follow(graph: Graph, removed: Sequence[Sequence[int]]) -> Tensor:
    clamped = torch.zeros(len(removed), len(graph.layer), dtype=torch.bool)
    for row, nodes in enumerate(removed):
        clamped[row, list(nodes)] = True
    change = torch.where(clamped, -graph.activation, 0.0)
    inverse = torch.where(graph.is_feature & (graph.activation != 0), 1 / graph.activation, 0.0)
    for owner in graph.owner[graph.target].unique().tolist():
        edges = (graph.owner[graph.target] == owner).nonzero().flatten()
        source, target = graph.source[edges], graph.target[edges]
        shares = change[:, source] * inverse[source]  # (n_ablations, n_edges)
        arriving = torch.zeros_like(change).index_add_(1, target, shares * graph.weight[edges])
        change = torch.where(clamped, change, change + arriving)
    return change


def drops(graph: Graph, removed: Sequence[Sequence[int]]) -> Tensor:
    """Predict how much what is explained falls, float64 `(n_ablations,)`."""
    return -follow(graph, removed)[:, graph.logits] @ graph.gains
