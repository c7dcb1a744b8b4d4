"""Is one arm's perturbation error larger than another's? Both answered the same perturbations.

Two figures, since squared errors have a heavy tail: pooled NMSE, which a few large errors decide, and the
median perturbation's, which they do not move. Seeds and contexts are resampled whole, 2,000 times: the
perturbations of one context and the contexts of one fit resemble each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.perturbation import Answers

BOOTSTRAP = 2000
_QUANTILES = (0.025, 0.975)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A figure of one arm over another's, minus 1, with its 95 % interval."""

    name: str
    first: float
    second: float
    low: float
    high: float

    @property
    def value(self) -> float:
        """The relative difference."""
        return self.first / self.second - 1


def pooled_nmse(errors: Tensor, sizes: Tensor) -> float:
    """Return squared error over squared change, both summed over perturbations, then the mean over depths.

    Args:
        errors: `(seeds, contexts, perturbations, depths)`.
        sizes: The same.
    """
    return float((errors.sum((0, 1, 2)) / sizes.sum((0, 1, 2))).mean())


def median_nmse(errors: Tensor, sizes: Tensor) -> float:
    """Return the median over perturbations of squared error over squared change, both summed over depths."""
    return float((errors.sum(-1) / sizes.sum(-1)).median())


def changes(first: Sequence[Answers], second: Sequence[Answers], *, seed: int = 0) -> tuple[Change, ...]:
    """Compare two arms, one entry per seed of the fits; contexts are the same everywhere."""
    return (
        _change("pooled NMSE", pooled_nmse, first, second, seed),
        _change("median NMSE", median_nmse, first, second, seed),
    )


def _change(
    name: str,
    figure: Callable[[Tensor, Tensor], float],
    first: Sequence[Answers],
    second: Sequence[Answers],
    seed: int,
) -> Change:
    sizes = torch.stack([answers.sizes for answers in first])
    ours, theirs = (torch.stack([answers.errors for answers in arm]) for arm in (first, second))
    generator = torch.Generator().manual_seed(seed)
    resampled = []
    for _ in range(BOOTSTRAP):
        seeds = torch.randint(len(sizes), (len(sizes), 1), generator=generator)
        contexts = torch.randint(sizes.shape[1], (1, sizes.shape[1]), generator=generator)
        chosen = sizes[seeds, contexts]
        resampled.append(figure(ours[seeds, contexts], chosen) / figure(theirs[seeds, contexts], chosen) - 1)
    low, high = torch.tensor(resampled).quantile(torch.tensor(_QUANTILES)).tolist()
    return Change(name=name, first=figure(ours, sizes), second=figure(theirs, sizes), low=low, high=high)
