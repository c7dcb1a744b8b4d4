"""Attention: effects through the exact softmax on an induction model, whose true edges are patched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.attention_effects import edges, pairs, prepare, shares, train
from benchmarks.scorecard.entries import Entry, above_zero, at_least, at_most, counted, together
from benchmarks.scorecard.subject import Subject
from trephine.domain.findings import Figure

RESAMPLES = 1000
_OF = "an induction model of two layers"
Estimates = list[dict[str, list[float]]]
"""By pair: true effects, and what every estimator says."""


def attention(subject: Subject) -> Iterator[Entry]:
    """Compare estimates of effects through queries and keys with patches of the model itself."""
    sizes = subject.sizes
    hosted = train(sizes.induction_steps, sizes.seed)
    cases = [prepare(hosted, pair) for pair in pairs(hosted, sizes.induction_pairs, sizes.seed + 1)]
    with torch.no_grad():
        single = [edges(hosted, [case]) for case in cases]
        joint = [shares(hosted, [case]) for case in cases[: len(cases) // 2]]
    for each in single:
        each["frozen patterns"] = [0.0] * len(each["true"])
    how = f"{len(cases)} pairs of sequences, {sum(len(each['true']) for each in single)} edges, each patched"
    ours, gradient, lead = resampled(single, "exact softmax", "gradient", pearson)
    yield Entry(
        figure="Pearson of effects through queries and keys with patches",
        of=_OF,
        value=ours,
        beside=(gradient, counted("frozen patterns", 0.0)),
        bar="at least 0.95, and above the gradient, paired",
        verdict=together([at_least(ours, 0.95), above_zero([lead])]),
        how=how,
    )
    ours, gradient, lead = resampled(single, "exact softmax", "gradient", error)
    yield Entry(
        figure="squared error of the same over squared effect",
        of=_OF,
        value=ours,
        beside=(gradient, counted("frozen patterns", 1.0)),
        bar="at most 0.12",
        verdict=at_most(ours, 0.12),
        how=how,
    )
    ours, gradient, lead = resampled([found for found, _ in joint], "Aumann-Shapley", "gradient", pearson)
    yield Entry(
        figure="Pearson of shares of a joint change with Shapley values",
        of=_OF,
        value=ours,
        beside=(gradient,),
        bar="at least 0.95, and above the gradient, paired",
        verdict=together([at_least(ours, 0.95), above_zero([lead])]),
        how=f"{len(joint)} pairs, six sources, 64 masked runs each",
    )
    nodes = max(joint[0][1])
    worst = max(residual[nodes] for _, residual in joint)
    yield Entry(
        figure="what the shares leave of the true change, at worst",
        of=_OF,
        value=counted("residual", worst),
        bar="at most 1e-3",
        verdict=at_most(counted("residual", worst), 1e-3),
        how=f"{len(joint)} pairs, every head, share of the exact change; {nodes} nodes; the product "
        "doubles them from 16 until the bar is met",
    )


def pearson(true: Tensor, estimate: Tensor) -> float:
    """Correlate, `(n,)` each."""
    return float(torch.corrcoef(torch.stack([true, estimate]))[0, 1])


def error(true: Tensor, estimate: Tensor) -> float:
    """Squared error over squared effect, `(n,)` each."""
    return float((true - estimate).square().sum() / true.square().sum())


def resampled(
    found: Estimates, name: str, other: str, statistic: Callable[[Tensor, Tensor], float]
) -> tuple[Figure, Figure, Figure]:
    """Two estimators' figures and the lead of the first; pairs of sequences are resampled whole."""
    columns = {
        key: [torch.tensor(each[key], dtype=torch.float64) for each in found] for key in ("true", name, other)
    }
    generator = torch.Generator().manual_seed(0)
    drawn = [list(range(len(found)))]
    drawn += [
        torch.randint(len(found), (len(found),), generator=generator).tolist() for _ in range(RESAMPLES)
    ]
    rows = [
        [statistic(_joined(columns["true"], each), _joined(columns[key], each)) for key in (name, other)]
        for each in drawn
    ]
    values = torch.tensor(rows, dtype=torch.float64)
    values = torch.cat([values, values[:, :1] - values[:, 1:]], dim=1)
    low, high = values[1:].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    ours, theirs, lead = (
        Figure(name=key, value=float(values[0, place]), low=float(low[place]), high=float(high[place]))
        for place, key in enumerate((name, other, "lead"))
    )
    return ours, theirs, lead


def _joined(parts: Sequence[Tensor], chosen: Sequence[int]) -> Tensor:
    return torch.cat([parts[place] for place in chosen])
