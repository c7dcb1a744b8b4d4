"""Do the estimated effects hold? Single neurons are ablated in the real model, nothing frozen."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trephine.domain.circuits import EstimateQuality
from trephine.domain.commands import Progress
from trephine.domain.sites import FeatureRef
from trephine.engine.attribution.correlations import Statistic, slope, spearman
from trephine.engine.attribution.readouts import Hosted
from trephine.engine.attribution.targets import Explained, removing
from trephine.engine.models.hosted import HostedModel
from trephine.engine.runs.resumption import CleanRun, clean_run, resumed
from trephine.engine.runs.rows import RowInput

_TOKENS_PER_QUANTUM = 64
"""Prompt tokens per batch: some 100 ms for a model of 135 million parameters on two cores."""
_RESAMPLES = 1000
_DECILES = 10
_FEWEST = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """A feature at a position, and how much the target should fall without it, in logits."""

    feature: FeatureRef
    position: int
    effect: float
    by_half_rule: float
    """The same by the rule of the shown edges, summed over all paths."""

    @property
    def layer(self) -> int:
        """The feature's."""
        return self.feature.layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """How features are taken out of the real model, and what their estimates are."""

    noun: str
    """`neurons` or `features`."""
    measure: Callable[[Sequence[Predicted]], Tensor]
    """Runs the prompt once per feature, each ablated at its own position, or once as it is if there is none:
    the explained quantity `(rows,)`."""
    how: str
    """What is done to each, in words."""
    edge_rule: str


def neuron_ablation(hosted: HostedModel, ids: Sequence[int], explained: Explained) -> Ablation:
    """Set neurons to zero."""
    measure = partial(_rows_measured, hosted, ids, explained)
    if explained.last_logits_only:
        clean = clean_run(hosted.model, hosted.architecture, ids)
        measure = partial(_logits_measured, hosted, ids, explained, clean)
    return Ablation(
        noun="neurons", measure=measure, how="each set to zero at its own position", edge_rule="relp_half"
    )


def feature_ablation(hosted: HostedModel, ids: Sequence[int], explained: Explained) -> Ablation:
    """Set features of sets to zero."""
    return Ablation(
        noun="features",
        measure=partial(_rows_measured, hosted, ids, explained),
        how="each set to zero at its own position with the error term live",
        edge_rule="the paths of the shown graph",
    )


def verify_estimates(
    nodes: Sequence[Predicted], ablation: Ablation, *, n_tokens: int, count: int, seed: int
) -> Generator[Progress, None, EstimateQuality | None]:
    """Ablate features one at a time at their own position and compare with the predictions.

    Args:
        nodes: Candidates.
        ablation: How they are taken out, and what is measured.
        n_tokens: Length of the prompt.
        count: How many are ablated, stratified over deciles of the predicted effect.
        seed: Of the choice and of the bootstrap.

    Returns:
        The agreement; None if fewer than three nodes can be compared.
    """
    chosen = stratified(nodes, count, seed)
    if len(chosen) < _FEWEST:
        return None
    rows = max(1, _TOKENS_PER_QUANTUM // n_tokens)
    clean = float(ablation.measure(())[0])
    measured = [0.0] * len(chosen)
    upwards = sorted(range(len(chosen)), key=lambda place: chosen[place].layer)
    for start in range(0, len(chosen), rows):
        places = upwards[start : start + rows]
        drops = clean - ablation.measure([chosen[place] for place in places])
        for place, drop in zip(places, drops.tolist(), strict=True):
            measured[place] = drop
        yield Progress(stage="verify", done=start + len(places), total=len(chosen))
    return _quality(chosen, measured, seed, ablation)


def _rows_measured(
    hosted: HostedModel,
    ids: Sequence[int],
    explained: Explained,
    nodes: Sequence[Predicted],
) -> Tensor:
    removed = [removing(node.feature, node.position) for node in nodes]
    rows = [RowInput(ids, (intervention,)) for intervention in removed] or [RowInput(ids)]
    return explained.on_rows(hosted, rows)


def _logits_measured(
    hosted: Hosted, ids: Sequence[int], explained: Explained, clean: CleanRun, nodes: Sequence[Predicted]
) -> Tensor:
    return explained.of_last_logits(_last_logits(hosted, ids, nodes, clean=clean if nodes else None))


def stratified(nodes: Sequence[Predicted], count: int, seed: int) -> list[Predicted]:
    """Choose up to `count` nodes evenly over the deciles of their predicted effect."""
    chooser = random.Random(seed)  # noqa: S311  a sample, not a secret
    ranked = sorted(nodes, key=lambda node: node.effect)
    count = min(count, len(ranked))
    chosen: list[Predicted] = []
    for decile in range(_DECILES):
        low, high = len(ranked) * decile // _DECILES, len(ranked) * (decile + 1) // _DECILES
        share = count * (decile + 1) // _DECILES - count * decile // _DECILES
        chosen += chooser.sample(ranked[low:high], min(share, high - low))
    return chosen


def _last_logits(
    hosted: Hosted, ids: Sequence[int], ablated: Sequence[Predicted], *, clean: CleanRun | None = None
) -> Tensor:
    """Run the prompt once per ablated neuron (once if there is none): `(rows, d_vocab)`."""
    weight: Any = hosted.architecture.embedding.weight
    batch = torch.tensor([list(ids)] * max(1, len(ablated)), device=weight.device)
    handles = []
    try:
        for layer in {node.layer for node in ablated}:
            cells = [(row, n.position, n.feature.index) for row, n in enumerate(ablated) if n.layer == layer]
            down = hosted.architecture.blocks[layer].mlp.down
            handles.append(down.register_forward_pre_hook(_zeroing(torch.tensor(cells).T)))
        with resumed(hosted.architecture, clean, min((node.layer for node in ablated), default=0)):
            output: Any = hosted.model(input_ids=batch, use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
    logits: Tensor = output.logits[:, -1]
    return logits


def _zeroing(cells: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Tensor]]:
    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        neurons: Tensor = args[0].clone()
        neurons[tuple(cells)] = 0
        return (neurons,)

    return hook


def _quality(
    chosen: list[Predicted], measured: list[float], seed: int, ablation: Ablation
) -> EstimateQuality | None:
    x = torch.tensor([node.effect for node in chosen], dtype=torch.float64)
    half = torch.tensor([node.by_half_rule for node in chosen], dtype=torch.float64)
    y = torch.tensor(measured, dtype=torch.float64)
    if not x.any() or not y.any():
        return None
    slope_low, slope_high = _interval(slope, x, y, seed)
    spearman_low, spearman_high = _interval(spearman, x, y, seed)
    edge_slope_low, edge_slope_high = _interval(slope, half, y, seed)
    edge_spearman_low, edge_spearman_high = _interval(spearman, half, y, seed)
    return EstimateQuality(
        nodes=len(chosen),
        slope=float(slope(x, y)),
        slope_low=slope_low,
        slope_high=slope_high,
        spearman=float(spearman(x, y)),
        spearman_low=spearman_low,
        spearman_high=spearman_high,
        edge_slope=float(slope(half, y)),
        edge_slope_low=edge_slope_low,
        edge_slope_high=edge_slope_high,
        edge_spearman=float(spearman(half, y)),
        edge_spearman_low=edge_spearman_low,
        edge_spearman_high=edge_spearman_high,
        how=_how(chosen, y, ablation),
        predicted=tuple(x.tolist()),
        measured=tuple(y.tolist()),
    )


def _how(chosen: list[Predicted], y: Tensor, ablation: Ablation) -> str:
    effect = torch.tensor([node.effect for node in chosen], dtype=torch.float64)
    half = torch.tensor([node.by_half_rule for node in chosen], dtype=torch.float64)
    later = torch.tensor([node.position > 0 for node in chosen])
    text = (
        f"{len(chosen)} selected {ablation.noun}, sampled evenly over deciles of their predicted effect, "
        f"{ablation.how}, one at a time, in the real model with attention patterns and norms live; "
        f"{int((~later).sum())} of them at position 0 (an attention sink). Predicted: activation times the "
        f"exact gradient; of the edges: {ablation.edge_rule}, their rule, summed over all paths."
    )
    if int(later.sum()) >= _FEWEST:
        text += f" At positions >= 1 alone: {_pair(effect[later], y[later])}; "
        text += f"by {ablation.edge_rule} {_pair(half[later], y[later])}."
    return text + f" Intervals: 95 %, bootstrap over {ablation.noun}, {_RESAMPLES:,} resamples."


def _pair(x: Tensor, y: Tensor) -> str:
    return f"slope {float(slope(x, y)):.2f}, rank correlation {float(spearman(x, y)):.2f}"


def _interval(statistic: Statistic, x: Tensor, y: Tensor, seed: int) -> tuple[float, float]:
    """Percentile bootstrap over pairs, 95 %."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(x), (_RESAMPLES, len(x)), generator=generator)
    low, high = statistic(x[draws], y[draws]).quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return low, high
