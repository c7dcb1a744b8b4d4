"""Contexts grouped by what their nodes do: spherical k-means on normalised effect vectors, k by silhouette.

Dhillon and Modha 2001; seeding after k-means++ (Arthur and Vassilvitskii 2007) with cosine distances.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from math import isnan, nan, sqrt

import torch
from torch import Tensor

from trephine.domain.dataset_circuits import AUTO_CLUSTERS

_RESTARTS, _ROUNDS, _LARGEST, _CLOUDS = 8, 100, 8, 19
_SILHOUETTE_CONTEXTS = 1000
"""Silhouettes and principal axes need all pairs; larger splits are sampled."""
FEWEST_TO_GROUP = 3
"""Contexts; of two each would be a group of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clusters:
    """A grouping of contexts."""

    assignment: Tensor
    """int64 `(n_contexts,)`, the largest cluster first."""
    centres: Tensor
    """`(k, n)`, of norm 1."""
    silhouette: float
    null_silhouette: float
    """The largest of clouds without groups, see `cluster_contexts`."""

    @property
    def count(self) -> int:
        """Number of clusters."""
        return len(self.centres)

    def assign(self, vectors: Tensor) -> Tensor:
        """Put further contexts' `(m, n)` to their nearest centres."""
        return (normalised(vectors) @ self.centres.T).argmax(1)


def cluster_contexts(vectors: Tensor, wanted: int, seed: int) -> Generator[None, None, Clusters]:
    """Group contexts by direction of their effect vectors; one k a quantum.

    A cluster has at least one context, so that there may be fewer than are wanted. With `AUTO_CLUSTERS` the k
    of 2 to 8 with the largest silhouette is taken, and one cluster if it does not exceed that of every cloud
    without groups (`_null`), each at its own best k.

    Args:
        vectors: `(n_contexts, n)`.
        wanted: Number of clusters, or `AUTO_CLUSTERS`.
        seed: Of seeding and of the clouds.
    """
    directions, generator = normalised(vectors), torch.Generator().manual_seed(seed)
    counts = range(2, min(_LARGEST, len(vectors) - 1) + 1) if wanted == AUTO_CLUSTERS else (wanted,)
    best: tuple[float, Tensor, Tensor] | None = None
    for count in counts:
        assignment, centres = spherical_k_means(directions, count, generator)
        score = silhouette(directions, assignment, generator)
        if best is None or isnan(best[0]) or score > best[0]:
            best = score, assignment, centres
        yield
    if best is None:
        return _one(directions, nan)
    score, assignment, centres = best
    null = yield from _null(directions, counts, generator)
    if wanted == AUTO_CLUSTERS and not score > null:
        return _one(directions, null)
    return Clusters(assignment=assignment, centres=centres, silhouette=score, null_silhouette=null)


def _null(
    directions: Tensor, counts: Iterable[int], generator: torch.Generator
) -> Generator[None, None, float]:
    """Return the largest silhouette of clouds without groups, at any of the counts; one k a quantum.

    19 clouds are Gaussian with the mean and covariance of the directions, 19 uniform along their principal
    axes (Tibshirani et al. 2001): effects go together without being groups, and may be a continuum. Beating
    all of either kind is p = 0.05 against that kind. Coordinates that are shuffled on their own are no such
    null: they do not go together at all, so that any correlation looks like groups.
    """
    mean, axes = _principal_axes(directions, generator)
    scores = []
    for draw in range(2 * _CLOUDS):
        size = len(mean), len(axes)
        uniform = draw % 2 == 1
        spread = torch.rand(size, generator=generator) if uniform else torch.randn(size, generator=generator)
        along = (2 * spread - 1) * sqrt(3) if uniform else spread  # variance 1 either way
        cloud = normalised(mean + along @ axes)
        for count in counts:
            scores.append(silhouette(cloud, spherical_k_means(cloud, count, generator)[0], generator))
            yield
    return nan if any(map(isnan, scores)) else max(scores)


def _principal_axes(directions: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the mean, once for every context `(m, r)`, and principal axes as long as deviations `(r, r)`.

    Both are in coordinates of the contexts' span, which keep every angle and are few where contexts are.
    """
    if len(directions) > _SILHOUETTE_CONTEXTS:
        chosen = torch.randperm(len(directions), generator=generator)[:_SILHOUETTE_CONTEXTS]
        directions = directions[chosen]
    exact = directions.double()
    sizes, turns = torch.linalg.eigh(exact @ exact.T)
    kept = sizes > 1e-9 * sizes[-1].clamp_min(1e-12)
    points = turns[:, kept] * sizes[kept].sqrt()
    mean = points.mean(0, keepdim=True)
    _, lengths, axes = torch.linalg.svd(points - mean, full_matrices=False)
    scaled = lengths[:, None] * axes / sqrt(max(1, len(points) - 1))
    return mean.expand(len(points), -1).to(directions.dtype), scaled.to(directions.dtype)


def _one(directions: Tensor, null: float) -> Clusters:
    centre = normalised(directions.mean(0, keepdim=True))
    nowhere = torch.zeros(len(directions), dtype=torch.int64)
    return Clusters(assignment=nowhere, centres=centre, silhouette=nan, null_silhouette=null)


def normalised(vectors: Tensor) -> Tensor:
    """Scale rows to norm 1; zero rows stay zero."""
    return vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-12)


def spherical_k_means(directions: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return assignment and centres of the best of several starts, the largest cluster first, none empty."""
    best = max(
        (_descend(directions, _seeds(directions, count, generator)) for _ in range(_RESTARTS)),
        key=lambda found: float((directions * found[1][found[0]]).sum()),
    )
    assignment, centres = best
    sizes = torch.bincount(assignment, minlength=count)
    order = sizes.argsort(descending=True, stable=True)
    kept = int((sizes > 0).sum())  # contexts may point in fewer directions than groups are asked for
    return order.argsort()[assignment], centres[order[:kept]]


def _seeds(directions: Tensor, count: int, generator: torch.Generator) -> Tensor:
    chosen = [int(torch.randint(len(directions), (1,), generator=generator))]
    while len(chosen) < count:
        distance = (1 - (directions @ directions[chosen].T).amax(1)).clamp_min(0)
        weights = distance if float(distance.sum()) > 0 else torch.ones_like(distance)
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
    return directions[chosen]


def _descend(directions: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    assignment = (directions @ centres.T).argmax(1)
    for _ in range(_ROUNDS):
        sums = torch.zeros_like(centres).index_add_(0, assignment, directions)
        empty = torch.bincount(assignment, minlength=len(centres)) == 0
        centres = torch.where(empty[:, None], centres, normalised(sums))
        moved = (directions @ centres.T).argmax(1)
        if torch.equal(moved, assignment):
            break
        assignment = moved
    return assignment, centres


def silhouette(directions: Tensor, assignment: Tensor, generator: torch.Generator) -> float:
    """Return the mean silhouette by cosine distance (Rousseeuw 1987); a context alone counts 0."""
    if len(directions) > _SILHOUETTE_CONTEXTS:
        chosen = torch.randperm(len(directions), generator=generator)[:_SILHOUETTE_CONTEXTS]
        directions, assignment = directions[chosen], assignment[chosen]
    groups, place = assignment.unique(return_inverse=True)
    if len(groups) < 2:
        return nan
    members = torch.nn.functional.one_hot(place).to(directions.dtype)  # (n, k)
    sizes = members.sum(0)
    totals = (1 - directions @ directions.T) @ members  # (n, k)
    own = totals.gather(1, place[:, None])[:, 0] / (sizes[place] - 1).clamp_min(1)
    others = (totals / sizes).masked_fill(members.bool(), torch.inf).amin(1)
    least = 16 * torch.finfo(directions.dtype).eps  # nearer than this, distances are roundings
    scores = (others - own) / torch.maximum(own, others).clamp_min(least)
    return float(scores.masked_fill(sizes[place] == 1, 0).mean())
