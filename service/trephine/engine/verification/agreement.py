"""Do predictions hold? Single and group ablations of the real model against what was predicted for them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.circuits import EdgeRule
from trephine.domain.commands import Progress
from trephine.domain.verification import (
    Agreement,
    Comparison,
    DepthAgreement,
    Measurement,
    Predictor,
    Substitute,
    VerificationOptions,
)
from trephine.engine.attribution.correlations import slope, spearman
from trephine.engine.verification.ablations import measured_changes, measured_drops
from trephine.engine.verification.choosing import ZERO, Removal, groups, outside_cells, singles
from trephine.engine.verification.paths import drops, follow, permuted
from trephine.engine.verification.statistics import Bootstrap, Paired, standing
from trephine.engine.verification.subject import Subject, ablation_words

FEWEST = 3
"""Ablations of a kind with fewer than these are not summed up."""
PERMUTATIONS = 10
DEPTHS = ((0, 0), (1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, 1_000))
_SAME = (
    "a node's shown effect is its activation times the exact gradient, so that it is this baseline itself: "
    "it cannot beat it"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablated:
    """Removals, what was predicted for each and what was measured, in logits."""

    removals: tuple[Removal, ...]
    shown: Tensor
    """float64 `(n,)`."""
    paths: Tensor
    measured: Tensor

    def of_kind(self, kind: str) -> Tensor:
        """Return the places of one kind, int64."""
        return torch.tensor([n for n, one in enumerate(self.removals) if one.kind == kind], dtype=torch.long)


def ablate(
    subject: Subject, supernodes: Sequence[Sequence[int]], options: VerificationOptions
) -> Generator[Progress, None, Ablated]:
    """Ablate single features and groups, to zero, one batch a quantum."""
    outside = outside_cells(subject.active, subject.graph, count=options.nodes, seed=options.seed)
    chosen = [
        *singles(subject.graph, outside, count=options.nodes, seed=options.seed),
        *groups(subject.graph, supernodes, count=options.groups, seed=options.seed),
    ]
    shown = [sum(float(subject.effect[c.ref][c.position, c.index]) for c in one.cells) for one in chosen]
    paths = drops(subject.graph, [one.nodes for one in chosen])
    measured = yield from measured_drops(subject.prompt, chosen, None, "single and group ablations")
    return Ablated(
        removals=tuple(chosen),
        shown=torch.tensor(shown, dtype=torch.float64),
        paths=paths,
        measured=measured,
    )


def agreements(
    subject: Subject, found: Ablated, bootstrap: Bootstrap
) -> Generator[None, None, tuple[Agreement, ...]]:
    """Sum up rank correlation and slope, by kind of ablation and predictor; one of these a quantum."""
    kinds = list(dict.fromkeys(one.kind for one in found.removals))
    inside = torch.tensor([one.nodes != () for one in found.removals])
    parts = [(kind, found.of_kind(kind)) for kind in kinds]
    nodes = found.of_kind("single nodes")
    parts.insert(1, ("single nodes of the graph", nodes[inside[nodes]]))
    predictors = ((Predictor.SHOWN, found.shown), (Predictor.PATHS, found.paths))
    listed: list[Agreement] = []
    for kind, places in parts:
        for predictor, predicted in predictors if len(places) >= FEWEST else ():
            x, y = predicted[places], found.measured[places]
            listed.append(_agreement(subject, kind, predictor, x, y, bootstrap))
            yield
    return tuple(listed)


def _agreement(
    subject: Subject, kind: str, predictor: Predictor, x: Tensor, y: Tensor, bootstrap: Bootstrap
) -> Agreement:
    return Agreement(
        ablations=kind,
        predictor=predictor,
        count=len(x),
        spearman=bootstrap.figure("rank correlation", spearman, x, y),
        slope=bootstrap.figure("slope", slope, x, y),
        how=f"{_sampled(kind)}, {ablation_words(subject.prompt, Substitute.ZERO)}; predicted: "
        f"{predictor_words(predictor, subject.circuit.edge_rule)}",
    )


def _sampled(kind: str) -> str:
    return {
        "single nodes": "one feature at a time, evenly over quantiles of the absolute shown effect and the "
        "stratum outside the graph",
        "single nodes of the graph": "one feature of the graph at a time, evenly over quantiles of the "
        "absolute shown effect",
        "random groups": "2 to 16 features of one quantile together",
        "supernodes": "the features of one supernode together",
        "whole layers": "all of the graph's features of a layer together",
        "cumulative top-k": "the k features of largest absolute shown effect together",
    }[kind]


def predictor_words(predictor: Predictor, rule: EdgeRule) -> str:
    """Say what a predictor is."""
    return {
        Predictor.SHOWN: "activation times the exact gradient, nothing frozen, added up over a group",
        Predictor.PATHS: f"the stored edges ({rule}, patterns and norm scales frozen), over all paths; "
        "features removed together stay removed, features outside the graph predict 0",
        Predictor.MAGNITUDE: "absolute activation, compared with the absolute change",
        Predictor.ACTIVATION_GRADIENT: "activation times the exact gradient",
        Predictor.PERMUTED: f"the paths with every row's weights dealt out anew among its sources, mean over "
        f"{PERMUTATIONS} deals",
    }[predictor]


def comparisons(
    subject: Subject, found: Ablated, bootstrap: Bootstrap, seed: int
) -> Generator[None, None, tuple[Comparison, ...]]:
    """Compare both predictors with every baseline, paired over the same single nodes; one pair a quantum."""
    places = found.of_kind("single nodes")
    removals = [found.removals[place] for place in places.tolist()]
    cells = [one.cells[0] for one in removals]
    magnitude = [float(subject.activation[c.ref][c.position, c.index].abs()) for c in cells]
    dealt = []
    for n in range(PERMUTATIONS):
        dealt.append(drops(permuted(subject.graph, seed + n), [one.nodes for one in removals]))
        yield
    baselines = {
        Predictor.MAGNITUDE: torch.tensor([magnitude], dtype=torch.float64),
        Predictor.ACTIVATION_GRADIENT: found.shown[places][None],
        Predictor.PERMUTED: torch.stack(dealt),
    }
    predictors = {Predictor.SHOWN: found.shown[places][None], Predictor.PATHS: found.paths[places][None]}
    y = found.measured[places]
    listed: list[Comparison] = []
    for predictor, one in predictors.items():
        for baseline, other in baselines.items():
            listed.append(_comparison(subject, predictor, one, baseline, other, y, bootstrap))
            yield
    return tuple(listed)


def _comparison(
    subject: Subject,
    predictor: Predictor,
    one: Tensor,
    baseline: Predictor,
    other: Tensor,
    y: Tensor,
    bootstrap: Bootstrap,
) -> Comparison:
    signed = baseline is not Predictor.MAGNITUDE
    difference = bootstrap.difference(
        "difference of rank correlations",
        Paired(versions=one, signed=signed),
        Paired(versions=other, signed=signed),
        y,
    )
    same = predictor is Predictor.SHOWN and baseline is Predictor.ACTIVATION_GRADIENT
    rule = subject.circuit.edge_rule
    how = (
        f"{len(y)} single nodes, {ablation_words(subject.prompt, Substitute.ZERO)}; "
        f"{predictor_words(predictor, rule)}, against {predictor_words(baseline, rule)}; paired bootstrap of "
        f"{bootstrap.samples} resamples, 95 %" + ("" if signed else "; absolute values on both sides")
    )
    return Comparison(
        predictor=predictor,
        baseline=baseline,
        difference=difference,
        standing=standing(difference, identical=same),
        how=f"{_SAME}; {how}" if same else how,
    )


def depths(
    subject: Subject, options: VerificationOptions, found: Ablated, bootstrap: Bootstrap
) -> Generator[Progress | None, None, tuple[DepthAgreement, ...]]:
    """Compare predicted and real changes of the graph's features, by layers above the ablation.

    0 layers above: features that read above the ablated one in its own block.
    """
    chosen = [one for one in found.removals if one.kind == "single nodes" and one.stratum != ZERO]
    chosen = chosen[: options.depth_nodes]
    if not chosen:
        return ()
    real = yield from measured_changes(subject, chosen)
    predicted = follow(subject.graph, [one.nodes for one in chosen])
    gap = subject.graph.layer[None] - torch.tensor([one.first_layer for one in chosen])[:, None]
    lowest = torch.tensor([min(int(subject.graph.owner[node]) for node in one.nodes) for one in chosen])
    later = subject.graph.is_feature & (subject.graph.position > 0)
    usable = later[None] & (subject.graph.owner[None] > lowest[:, None])
    rows = [
        _depth(subject, *limits, predicted, real, usable & (gap >= limits[0]) & (gap <= limits[1]), bootstrap)
        for limits in DEPTHS
    ]
    return tuple(row for row in rows if row is not None)


def _depth(
    subject: Subject,
    nearest: int,
    farthest: int,
    predicted: Tensor,
    real: Tensor,
    chosen: Tensor,
    bootstrap: Bootstrap,
) -> DepthAgreement | None:
    a, b = predicted * chosen, real * chosen
    moved = (b != 0).any(1)
    if int(moved.sum()) < FEWEST:
        return None
    a, b = a[moved], b[moved]
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1, eps=1e-30)
    n_layers = subject.prompt.hosted.info.n_layers
    return DepthAgreement(
        nearest=nearest,
        farthest=min(farthest, n_layers - 1),
        cosine=bootstrap.mean("cosine", cosine),
        nmse=bootstrap.ratio("normalised squared error", (a - b).square().sum(1), b.square().sum(1)),
        ablations=len(a),
        how="change of the graph's features at positions >= 1 in these layers; one feature "
        f"{ablation_words(subject.prompt, Substitute.ZERO)}; predicted: "
        f"{predictor_words(Predictor.PATHS, subject.circuit.edge_rule)}",
    )


def measurements(found: Ablated) -> tuple[Measurement, ...]:
    """List every ablation."""
    rows = zip(
        found.removals, found.shown.tolist(), found.paths.tolist(), found.measured.tolist(), strict=True
    )
    return tuple(
        Measurement(
            ablations=one.kind,
            stratum=one.stratum,
            nodes=len(one.cells),
            shown=shown,
            paths=paths,
            measured=measured,
        )
        for one, shown, paths, measured in rows
    )
