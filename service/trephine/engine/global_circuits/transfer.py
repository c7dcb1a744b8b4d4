"""Whether edges hold on other texts: transfer to ablations there, and agreement between halves."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from trephine.domain.findings import Figure
from trephine.domain.global_figures import BaselineComparison, GlobalBaseline, HeldOutTransfer, Measured
from trephine.engine.attribution.correlations import spearman
from trephine.engine.global_circuits.ablations import Losses
from trephine.engine.global_circuits.activity import Activity
from trephine.engine.global_circuits.growth import heaviest_into
from trephine.engine.global_circuits.measured import MeasuredEdges
from trephine.engine.verification.statistics import Bootstrap, Paired, standing

FEWEST = 8
"""Fewer edges than these say nothing about a rank correlation."""
PERMUTATIONS = 10
MOST_COMPARED = 256
"""Edges whose halves are compared, evenly over the ranks of their weights."""


def sampled(weight: Tensor, count: int) -> Tensor:
    """Return places of some edges, evenly over the ranks of their absolute weights `(n_edges,)`."""
    order = weight.abs().argsort(descending=True, stable=True)
    places = torch.linspace(0, max(0, len(order) - 1), min(count, len(order))).round().long()
    return order[places]


def transfers(
    edges: MeasuredEdges, losses: Losses, activity: Activity, bootstrap: Bootstrap, seed: int
) -> Generator[None, None, tuple[HeldOutTransfer, ...]]:
    """Hold edges and baselines against what targets lost, in two ways; one of these a quantum."""
    found = []
    for measured, loss in ((Measured.SOURCE, losses.where_source), (Measured.TARGET, losses.where_target)):
        known = (loss.isfinite() & losses.activation.isfinite()).nonzero()[:, 0]
        if len(known) >= FEWEST:
            found.append(_transfer(edges, losses, loss, known, measured, activity, bootstrap, seed))
        yield None
    return tuple(found)


def _transfer(
    edges: MeasuredEdges,
    losses: Losses,
    loss: Tensor,
    known: Tensor,
    measured: Measured,
    activity: Activity,
    bootstrap: Bootstrap,
    seed: int,
) -> HeldOutTransfer:
    source, target, y = losses.source[known], losses.target[known], loss[known]
    at_source = measured is Measured.SOURCE
    ones = torch.ones(len(known), dtype=torch.float64)
    mean = activity.mean_written[edges.chosen.features[source]]
    weight, virtual = (each.cpu()[source, target].double() for each in (edges.weight, edges.virtual))
    # An edge has the sign of its source's activation already: neurons have both.
    factor, usual = (losses.size[known], losses.activation[known]) if at_source else (ones, mean)
    dealt = torch.stack([_dealt(edges, source, target, weight, seed + n) for n in range(PERMUTATIONS)])
    predicted = weight * factor
    baselines = {
        GlobalBaseline.VIRTUAL: Paired(versions=virtual[None], signed=False),
        GlobalBaseline.VIRTUAL_ACTIVATION: Paired(versions=(virtual * usual)[None]),
        GlobalBaseline.PERMUTED: Paired(versions=dealt * factor),
    }
    return HeldOutTransfer(
        measured=measured,
        edges=len(known),
        spearman=bootstrap.figure("rank correlation", spearman, predicted, y),
        comparisons=tuple(
            _comparison(which, predicted, other, y, bootstrap) for which, other in baselines.items()
        ),
        how=_how(measured, losses.tokens),
    )


def _comparison(
    which: GlobalBaseline, predicted: Tensor, other: Paired, y: Tensor, bootstrap: Bootstrap
) -> BaselineComparison:
    ours = Paired(versions=predicted[None], signed=other.signed)
    difference = bootstrap.difference("difference of rank correlations", ours, other, y)
    return BaselineComparison(
        baseline=which,
        spearman=_correlation(other, y, bootstrap),
        difference=difference,
        standing=standing(difference),
        how=f"{len(y)} edges, paired bootstrap of {bootstrap.samples} resamples of edges, 95 %"
        + ("" if other.signed else "; absolute values on both sides"),
    )


def _correlation(baseline: Paired, y: Tensor, bootstrap: Bootstrap) -> Figure:
    """Correlate with an interval; of several versions the mean."""
    # A constant correlates with nothing.
    nothing = Paired(versions=torch.zeros_like(baseline.versions[:1]), signed=baseline.signed)
    return bootstrap.difference("rank correlation", baseline, nothing, y)


def _dealt(edges: MeasuredEdges, source: Tensor, target: Tensor, weight: Tensor, seed: int) -> Tensor:
    """Deal weights out anew among edges between the same layers; those alone there, among each other."""
    layer = edges.chosen.layer
    between = layer[source] * (int(layer.max()) + 1) + layer[target]
    values, group, counts = between.unique(return_inverse=True, return_counts=True)
    group = torch.where(counts[group] > 1, group, len(values))
    generator, dealt = torch.Generator().manual_seed(seed), weight.clone()
    for one in group.unique():
        own = (group == one).nonzero()[:, 0]
        dealt[own] = weight[own[torch.randperm(len(own), generator=generator)]]
    return dealt


def _how(measured: Measured, tokens: int) -> str:
    what = {
        Measured.SOURCE: "edge weight times the source's mean activation against the target's mean loss, "
        "over tokens on which the source is active",
        Measured.TARGET: "edge weight against the target's mean loss, over tokens weighted by the target as "
        "the edges are",
    }[measured]
    return (
        f"{what}; source ablated at all positions but the first of {tokens} held-out tokens, everything "
        "above live, error terms too; loss of the pre-activation, of neurons of the activation"
    )


def split_half(edges: MeasuredEdges, source: Tensor, target: Tensor, bootstrap: Bootstrap) -> Figure | None:
    """Correlate the circuit's edges, places among candidates, between halves of the texts; None of a few."""
    if len(source) < FEWEST:
        return None
    places = sampled(edges.weight.cpu()[source, target], MOST_COMPARED)
    first, second = (half[source[places], target[places]].cpu().double() for half in edges.halves)
    return bootstrap.figure("rank correlation of halves", spearman, first, second)


def overlap(edges: MeasuredEdges, features: Tensor, per_node: int) -> float | None:
    """Return the share of the edges that either half would keep between some candidates, that both would."""
    first, second = (_kept(half.cpu()[features][:, features], per_node) for half in edges.halves)
    either = first | second
    return len(first & second) / len(either) if either else None


def _kept(weight: Tensor, per_node: int) -> set[tuple[int, int]]:
    source, target = heaviest_into(weight, per_node)
    return set(zip(source.tolist(), target.tolist(), strict=True))
