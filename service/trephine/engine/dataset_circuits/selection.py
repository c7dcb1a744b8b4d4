"""Which nodes are in: by mean effect, by frequency over subsamples; what is certified, what abstained on."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import lru_cache
from math import comb

import torch
from torch import Tensor

from trephine.domain.dataset_circuits import Discretion, Subsampling

CONFIDENCE = 0.95


def ranked(effects: Tensor) -> Tensor:
    """Return nodes with a non-zero effect, strongest first, int64 `(n,)`; ties by address."""
    order = effects.abs().argsort(descending=True, stable=True)
    return order[: int((effects != 0).sum())]


def selected(effects: Tensor, size: Discretion) -> Tensor:
    """Return the strongest nodes within budget and threshold, strongest first."""
    chosen = ranked(effects)[: size.nodes]
    return chosen if size.threshold is None else chosen[effects[chosen].abs() >= size.threshold]


def leaves_out(effects: Tensor, chosen: Tensor, size: Discretion) -> bool:
    """True if selection could fail: a node with an effect is left out, or a threshold may leave one out."""
    return size.threshold is not None or len(chosen) < int((effects != 0).sum())


def _selected_unordered(effects: Tensor, size: Discretion) -> Tensor:
    """Return the nodes of `selected`, in any order, ties by address as well: a tenth of sorting's time."""
    sizes = effects.abs()
    count = min(size.nodes, len(sizes))
    values, nodes = sizes.topk(count, sorted=True)
    last = values[-1]
    # Of nodes that tie for the last places, `topk` takes any.
    above = nodes[values != last]
    tied = (sizes == last).nonzero()[: count - len(above), 0]
    chosen = torch.cat([above, tied])
    chosen = chosen[effects[chosen] != 0]
    return chosen if size.threshold is None else chosen[sizes[chosen] >= size.threshold]


def subsamples(contexts: int, rule: Subsampling, seed: int) -> Tensor:
    """Draw parts of a split without replacement, bool `(draws, contexts)`."""
    generator = torch.Generator().manual_seed(seed)
    parts = torch.zeros(rule.draws, contexts, dtype=torch.bool)
    for part in parts:
        part[torch.randperm(contexts, generator=generator)[: part_size(contexts, rule)]] = True
    return parts


def part_size(contexts: int, rule: Subsampling) -> int:
    """Return how many contexts a subsample has: at least one, never all."""
    return min(contexts - 1, max(1, round(contexts * rule.share)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stability:
    """How often nodes are selected."""

    frequency: Tensor
    """float32 `(n_nodes,)`."""
    draws: int
    stable: Tensor
    """int64 `(n,)`, nodes that all data and enough subsamples select, strongest first."""
    abstained: Tensor
    """int64 `(n,)`, nodes that something selects and that are not stable; likeliest first."""


def stability_of(
    mean: Tensor, parts: Tensor, size: Discretion, rule: Subsampling
) -> Generator[None, None, Stability]:
    """Count selections, one part a quantum: going through all nodes is work where there are many.

    Args:
        mean: `(n_nodes,)`, effects over all contexts.
        parts: `(draws, n_nodes)`, effects over subsamples.
        size: The rule of selection, the same for all.
        rule: When a node is stable.
    """
    counts = torch.zeros(len(mean))
    for part in parts:
        counts[_selected_unordered(part, size)] += 1
        yield
    frequency = counts / len(parts)
    chosen = torch.zeros(len(mean), dtype=torch.bool)
    chosen[selected(mean, size)] = True
    # A share of the draws is a whole number of them: 0.9 of 20 must not fail on a rounding.
    enough = chosen & (counts >= rule.keep * len(parts) - 1e-9)
    stable = enough.nonzero()[:, 0]
    open_nodes = ((chosen | (counts > 0)) & ~enough).nonzero()[:, 0]
    likeliest = torch.argsort(frequency[open_nodes], descending=True, stable=True)
    return Stability(
        frequency=frequency,
        draws=len(parts),
        stable=stable[mean[stable].abs().argsort(descending=True, stable=True)],
        abstained=open_nodes[likeliest],
    )


@lru_cache(maxsize=1024)  # of thousands of nodes, which have a few dozen frequencies
def certified_edits(frequency: float, draws: int, contexts: int, size: int) -> int:
    """Return how many contexts may be exchanged before a majority of subsamples could drop a node.

    With r of n contexts exchanged, a subsample of k meets none of them with probability C(n-r, k) / C(n, k)
    and is then what it was, if no context's effects depend on others (`effects_shared`); so inclusion falls
    by at most one minus that. The inclusion probability itself is bounded from below by Clopper and
    Pearson's interval.
    """
    low = clopper_pearson_low(round(frequency * draws), draws)
    edits = 0
    while edits + size < contexts:
        untouched = comb(contexts - edits - 1, size) / comb(contexts, size)
        if low - (1 - untouched) <= 0.5:
            break
        edits += 1
    return edits


def clopper_pearson_low(successes: int, draws: int) -> float:
    """Return the one-sided lower bound of a probability at 95 % confidence, by bisection."""
    if successes == 0:
        return 0.0
    low, high = 0.0, successes / draws
    for _ in range(60):
        middle = (low + high) / 2
        tail = sum(
            comb(draws, k) * middle**k * (1 - middle) ** (draws - k) for k in range(successes, draws + 1)
        )
        low, high = (middle, high) if tail < 1 - CONFIDENCE else (low, middle)
    return low


def random_like(
    nodes: Tensor, groups: Tensor, allowed: Tensor, *, count: int, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Draw circuits with as many nodes of every group as one has, among the allowed ones if there are more.

    Args:
        nodes: int64 `(n,)`, the circuit.
        groups: int64 `(n_nodes,)`, layer and position of every node.
        allowed: bool `(n_nodes,)`, nodes with an effect at all: a dead one would be no control.
        count: How many circuits.
        generator: Of the draws.
    """
    pools = []
    for group, size in zip(*groups[nodes].unique(return_counts=True), strict=True):
        inside = groups == group
        pool = (inside & allowed).nonzero()[:, 0]
        pools.append((pool if len(pool) > int(size) else inside.nonzero()[:, 0], int(size)))

    def drawn() -> Tensor:
        parts = [pool[torch.randperm(len(pool), generator=generator)[:size]] for pool, size in pools]
        return torch.cat(parts) if parts else nodes

    return tuple(drawn() for _ in range(count))
