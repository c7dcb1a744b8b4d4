"""Which features are ablated: single ones by strata of their predicted effect, and groups."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.sites import LayerRef
from trephine.engine.verification.paths import Graph

STRATA = 5
"""Quantiles of the absolute predicted effect among the graph's features."""
ZERO = "outside"
"""The zero-effect stratum: features of the prompt that the graph leaves out, whose paths predict 0."""
_SMALL, _LARGE = 2, 16
"""Sizes of random groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A feature at a position."""

    ref: LayerRef
    position: int
    index: int
    node: int = -1
    """Its node in the graph; -1 outside."""

    @property
    def layer(self) -> int:
        """Its layer in the model."""
        return self.ref.layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What is ablated together."""

    kind: str
    stratum: str
    cells: tuple[Cell, ...]

    @property
    def nodes(self) -> tuple[int, ...]:
        """Nodes of the graph among them."""
        return tuple(cell.node for cell in self.cells if cell.node >= 0)

    @property
    def first_layer(self) -> int:
        """The lowest layer that it touches."""
        return min(cell.layer for cell in self.cells)


def cell_of(graph: Graph, node: int) -> Cell:
    """Return the address of a feature node."""
    return Cell(
        ref=graph.refs[int(graph.owner[node])],
        position=int(graph.position[node]),
        index=int(graph.index[node]),
        node=node,
    )


def later_features(graph: Graph) -> list[int]:
    """List feature nodes at positions >= 1: position 0 is an attention sink and is never ablated."""
    return (graph.is_feature & (graph.position > 0)).nonzero().flatten().tolist()


def singles(graph: Graph, outside: Sequence[Cell], *, count: int, seed: int) -> list[Removal]:
    """Choose single features, evenly over the strata; the rest where a stratum is too small for its share.

    Args:
        graph: The graph.
        outside: Candidates of the zero-effect stratum.
        count: How many in all.
        seed: Of the choice.
    """
    chooser = random.Random(seed)  # noqa: S311  a sample, not a secret
    pools: dict[str, list[Cell]] = {
        name: [cell_of(graph, node) for node in nodes] for name, nodes in strata(graph).items()
    }
    pools[ZERO] = list(outside)
    for cells in pools.values():
        chooser.shuffle(cells)
    chosen: list[Removal] = []
    while len(chosen) < count and any(pools.values()):
        for name, cells in pools.items():
            if cells and len(chosen) < count:
                chosen.append(Removal(kind="single nodes", stratum=name, cells=(cells.pop(),)))
    return chosen


def strata(graph: Graph) -> dict[str, list[int]]:
    """Split the graph's features at positions >= 1 by quantiles of their absolute shown effect."""
    ranked = sorted(later_features(graph), key=lambda node: float(graph.effect[node].abs()))
    return {
        f"quantile {n + 1} of {STRATA}": ranked[len(ranked) * n // STRATA : len(ranked) * (n + 1) // STRATA]
        for n in range(STRATA)
    }


def groups(graph: Graph, supernodes: Sequence[Sequence[int]], *, count: int, seed: int) -> list[Removal]:
    """Choose random groups within strata, supernodes, whole layers, and the cumulative top k."""
    if not count:
        return []
    chooser = random.Random(seed + 1)  # noqa: S311  a sample, not a secret
    found = []
    pools = {name: nodes for name, nodes in strata(graph).items() if len(nodes) >= _SMALL}
    for number, (name, nodes) in zip(range(count), _around(pools.items()), strict=False):
        size = min(len(nodes), _SMALL << (number // max(1, len(pools))) % 4, _LARGE)
        found.append(_removal(graph, "random groups", name, chooser.sample(nodes, size)))
    ranked = sorted(later_features(graph), key=lambda node: -float(graph.effect[node].abs()))
    return [
        *found,
        *_supernodes(graph, supernodes, count, ranked),
        *_whole_layers(graph, ranked),
        *_cumulative(graph, ranked),
    ]


def _around(pools: Iterable[tuple[str, list[int]]]) -> Iterable[tuple[str, list[int]]]:
    listed = list(pools)
    while listed:
        yield from listed


def given_groups(graph: Graph, given: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return what can be ablated of the caller's groups, of those with two features or more.

    One feature alone is a single node, and as a group it would count twice.
    """
    allowed = set(later_features(graph))
    named = ([node for node in dict.fromkeys(group) if node in allowed] for group in given)
    return [nodes for nodes in named if len(nodes) >= _SMALL]


def _supernodes(
    graph: Graph, given: Sequence[Sequence[int]], count: int, ranked: Sequence[int]
) -> list[Removal]:
    """Take the caller's groups; without any, features that are in the graph at several positions."""
    named = given_groups(graph, given)
    if not given:
        by_feature: dict[tuple[int, int], list[int]] = {}
        for node in ranked:
            by_feature.setdefault((int(graph.owner[node]), int(graph.index[node])), []).append(node)
        named = [nodes for nodes in by_feature.values() if len(nodes) >= _SMALL]
    found = [
        _removal(graph, "supernodes", "supernode" if given else "one feature, all positions", nodes)
        for nodes in named
    ]
    found.sort(key=lambda removal: -float(graph.effect[list(removal.nodes)].sum().abs()))
    return found[:count]


def _whole_layers(graph: Graph, ranked: Sequence[int]) -> list[Removal]:
    by_layer: dict[int, list[int]] = {}
    for node in ranked:
        by_layer.setdefault(int(graph.layer[node]), []).append(node)
    return [
        _removal(graph, "whole layers", f"layer {layer}", nodes) for layer, nodes in sorted(by_layer.items())
    ]


def _cumulative(graph: Graph, ranked: Sequence[int]) -> list[Removal]:
    sizes, k = [], 1
    while k < len(ranked):
        sizes.append(k)
        k *= 2
    return [
        _removal(graph, "cumulative top-k", f"top {k}", ranked[:k])
        for k in (*sizes, *([len(ranked)] if ranked else []))
    ]


def _removal(graph: Graph, kind: str, stratum: str, nodes: Sequence[int]) -> Removal:
    return Removal(kind=kind, stratum=stratum, cells=tuple(cell_of(graph, node) for node in nodes))


def outside_cells(active: Mapping[LayerRef, Tensor], graph: Graph, *, count: int, seed: int) -> list[Cell]:
    """Sample active features at positions >= 1 that the graph leaves out.

    Args:
        active: By layer of a set bool `(n_pos, width)`.
        graph: The graph.
        count: How many at most.
        seed: Of the sample.
    """
    generator = torch.Generator().manual_seed(seed + 2)
    found: list[Cell] = []
    per_layer = -(-count // max(1, len(active)))
    owners = {ref: number for number, ref in enumerate(graph.refs)}
    for ref, is_active in active.items():
        free = is_active.cpu().clone()
        free[0] = False
        own = (graph.is_feature & (graph.owner == owners.get(ref, -1))).nonzero().flatten()
        free[graph.position[own], graph.index[own]] = False
        places = free.nonzero()
        chosen = places[torch.randperm(len(places), generator=generator)[:per_layer]]
        found += [Cell(ref=ref, position=p, index=i) for p, i in chosen.tolist()]
    return found
