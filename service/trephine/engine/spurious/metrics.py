"""Figures of a decision: groups, agreement, flips, a fresh probe of the attribute; SAEBench's SCR and TPP."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trephine.domain.findings import Figure
from trephine.domain.shares import Interval, least, mean, rivals, share
from trephine.domain.spurious_groups import group_name
from trephine.engine.erasure.logistic import fit_logistic
from trephine.engine.spurious.examples import UNKNOWN

_FOLDS = 2
_SMALLEST_GAP = 1e-3
"""SAEBench: below this gap between the clean and the biased head SCR is 0."""


class Intervals:
    """Percentile bootstrap of 95 % over texts, within groups, so that every resample has all of them.

    Texts of a group that are drawn with replacement are right as often as a binomial draw says; it is that
    which is drawn, so that many texts cost no more than few. It closes where all texts of a group are right,
    or wrong, be it one alone, so that it is never taken for narrower than a score interval.
    """

    def __init__(self, groups: Tensor, *, resamples: int, seed: int) -> None:
        """Resample `groups (n,)`, int64."""
        self.groups = list(dict.fromkeys(groups.tolist()))
        """As they appear: their numbers follow names."""
        self._members = [groups == group for group in self.groups]
        self._sizes = torch.stack([inside.sum() for inside in self._members]).double()
        self._resamples, self._seed = resamples, seed

    def pooled(self, shares: Tensor) -> Tensor:
        """Return the share of all texts `(...)`, given those of the groups `(..., n_groups)`."""
        return (shares * self._sizes).sum(-1) / self._sizes.sum()

    def shares(self, hits: Tensor) -> list[Interval]:
        """Return the share of hits, 0 or 1, `(n,)`, of every group."""
        return [_share(hits[inside]) for inside in self._members]

    def least(self, name: str, hits: Tensor) -> Figure:
        """Measure the worst group's share of hits."""
        counts = [(int(hits[inside].sum()), int(inside.sum())) for inside in self._members]
        each = [share(*one, least_of=rivals(counts)) for one in counts]
        return self.figure(name, hits, lambda shares: shares.amin(-1), least(each))

    def figure(
        self, name: str, hits: Tensor, statistic: Callable[[Tensor], Tensor], score: Interval
    ) -> Figure:
        """Measure `statistic(shares (..., n_groups)) -> (...,)` of hits, 0 or 1, `(n,)`.

        `score` is the same by counts: what is told is as wide as that at least.
        """
        shares = torch.stack([hits[inside].double().mean() for inside in self._members])
        generator, shape = torch.Generator().manual_seed(self._seed), (self._resamples, len(shares))
        drawn = torch.binomial(self._sizes.expand(shape), shares.expand(shape), generator) / self._sizes
        value, spread = float(statistic(shares)), statistic(drawn)
        low, high = torch.quantile(spread, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        low, high = min(low, score.low, value), max(high, score.high, value)
        return Figure(name=name, value=value, low=low, high=high, unit="share")


def accuracy_figure(name: str, right: Tensor, groups: Tensor, *, resamples: int, seed: int) -> Figure:
    """Return the share of `right (n,)`, with its interval."""
    intervals = Intervals(groups, resamples=resamples, seed=seed)
    return intervals.figure(name, right, intervals.pooled, _share(right))


def decision_figures(
    decided: Tensor,
    labels: Tensor,
    attributes: Tensor,
    names: tuple[tuple[str, str], tuple[str, ...]],
    *,
    resamples: int,
    seed: int,
) -> list[Figure]:
    """Measure decisions `(n,)` on the test split.

    With a known attribute every group weighs the same, whatever its size; agreement is how often the decision
    is the label that the attribute goes with, so that 0.5 is none of it.
    """
    known = bool((attributes != UNKNOWN).all()) and len(names[1]) == 2
    groups = labels * 2 + attributes if known else labels
    intervals = Intervals(groups, resamples=resamples, seed=seed)
    right, agrees = decided == labels, decided == attributes
    rights = intervals.shares(right)
    found = [intervals.figure("label_accuracy", right, _mean, mean(rights))]
    if not known:
        return found
    found.append(intervals.figure("attribute_agreement", agrees, _mean, mean(intervals.shares(agrees))))
    found.append(intervals.least("worst_group", right))
    for group in sorted(intervals.groups):
        place = intervals.groups.index(group)
        name = f"group {group_name(names[0][group // 2], names[1][group % 2])}"
        found.append(intervals.figure(name, right, _of_one(place), rights[place]))
    return found


def _mean(shares: Tensor) -> Tensor:
    return shares.mean(-1)


def _of_one(place: int) -> Callable[[Tensor], Tensor]:
    return lambda shares: shares[..., place]


def pair_figures(
    margins: Tensor, pairs: Tensor, attributes: Tensor, *, resamples: int, seed: int
) -> list[Figure]:
    """Measure how often a pair's second label has the larger margin: the better reply the higher reward.

    Also of the worst kind of pairs, by the attributes of the two, where they are known and of several kinds.

    Args:
        margins: `(n,)`.
        pairs: `(n_pairs, 2)`, at least one.
        attributes: `(n,)`.
        resamples: Of the bootstrap over pairs, within kinds.
        seed: Of it.
    """
    first, second = pairs.unbind(1)
    right = margins[second] > margins[first]
    known = bool((attributes[pairs] != UNKNOWN).all())
    kinds = 2 * attributes[first] + attributes[second] if known else torch.zeros_like(first)
    intervals = Intervals(kinds, resamples=resamples, seed=seed)
    found = [intervals.figure("pair_accuracy", right, intervals.pooled, _share(right))]
    if len(intervals.groups) > 1:
        found.append(intervals.least("worst_pairs", right))
    return found


def _share(hits: Tensor) -> Interval:
    """Return the share of hits, 0 or 1, `(n,)`."""
    return share(int(hits.sum()), len(hits))


def worst_group(decided: Tensor, labels: Tensor, attributes: Tensor) -> float:
    """Return the accuracy `(n,)` of the worst of the groups that there are."""
    groups = labels * 2 + attributes
    return min(float((decided == labels)[groups == group].float().mean()) for group in groups.unique())


def fresh_probe(
    pooled: Tensor, classes: Tensor, strata: Tensor, *, penalty: float, seed: int
) -> Tensor | None:
    """Return whether a probe that has not seen it gets each vector's class right, bool `(n,)`; two folds.

    None where a stratum has fewer texts than there are folds: `halves` says so.
    """
    if not halves(strata):
        return None
    order = torch.randperm(len(pooled), generator=torch.Generator().manual_seed(seed))
    fold = torch.zeros(len(pooled), dtype=torch.long)
    for stratum in strata.unique():
        members = order[strata[order] == stratum]
        fold[members] = torch.arange(len(members)) % _FOLDS
    right = torch.zeros(len(pooled), dtype=torch.bool)
    for number in range(_FOLDS):
        seen, new = fold != number, fold == number
        weight, bias = fit_logistic(pooled[seen], classes[seen], penalty=penalty)
        right[new] = ((pooled[new].double() @ weight + bias) > 0) == (classes[new] == 1)
    return right


def halves(strata: Tensor) -> bool:
    """True if texts of every one of `strata (n,)` can be trained on, and others of it measured."""
    return int(strata.unique(return_counts=True)[1].min()) >= _FOLDS


def scr(base: float, clean: float, removed: float) -> float:
    """SAEBench: the share of the gap between a biased and a clean head that removing features closes.

    Of the direction that is asked for, the label kept and the attribute removed; SAEBench takes both and
    reports the one whose biased head is worse.
    """
    gap = clean - base
    return 0.0 if gap < _SMALLEST_GAP else (removed - base) / gap


def tpp(clean: tuple[float, float], removed: tuple[tuple[float, float], tuple[float, float]]) -> float:
    """SAEBench: mean over concepts of the accuracy lost to one's own features less that lost by the other.

    Args:
        clean: Accuracy of the two concepts' probes.
        removed: `removed[i][j]`: accuracy of concept j's probe with concept i's features removed.
    """
    own = [clean[i] - removed[i][i] for i in (0, 1)]
    other = [clean[1 - i] - removed[i][1 - i] for i in (0, 1)]
    return sum(o - x for o, x in zip(own, other, strict=True)) / 2
