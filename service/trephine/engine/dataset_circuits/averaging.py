"""Effects over a dataset: means of nodes over parts of it, and a sketch per context, in one sweep."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.dataset_circuits import NodeAblation
from trephine.engine.attribution.finite_runs import require_finite
from trephine.engine.dataset_circuits.estimators import EffectEstimator, PatchedPack
from trephine.engine.dataset_circuits.packs import Pack, capture_layout
from trephine.engine.dataset_circuits.patches import States, baseline, states_of, twin_states
from trephine.engine.dataset_circuits.space import NodeSpace
from trephine.engine.models.hosted import HostedModel

SKETCH = 4096
"""Coordinates of a context's effect vector: buckets of a count sketch, which keeps inner products."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Averages:
    """Mean effects over parts of a split."""

    parts: Tensor
    """float32 `(n_parts, n_nodes)`."""
    sketches: Tensor
    """float32 `(n_contexts, SKETCH)`, of effects summed over positions."""


def patched(
    hosted: HostedModel,
    space: NodeSpace,
    pack: Pack,
    ablation: NodeAblation,
    means: States,
    *,
    top: int | None = None,
) -> PatchedPack:
    """Run a pack clean, up to block `top` or through, and work out what its nodes are patched with."""
    operators = capture_layout(hosted, pack.clean, top)
    require_finite(operators)
    clean = states_of(hosted, space, operators, errors=False)
    twins = None
    if ablation is NodeAblation.RESAMPLE:
        other = capture_layout(hosted, pack.twins, top)
        twins = twin_states(states_of(hosted, space, other, errors=False), pack)
    replaced = baseline(space, pack, ablation, means=means, twins=twins, like=clean)
    return PatchedPack(pack=pack, operators=operators, clean=clean, replaced=replaced)


def average_effects(
    hosted: HostedModel,
    space: NodeSpace,
    packed: Sequence[Pack],
    parts: Tensor,
    estimator: EffectEstimator,
    *,
    patch: NodeAblation,
    means: States,
    seed: int,
    stage: str,
) -> Generator[Progress | None, None, Averages]:
    """Average effects over parts of a split; memory does not grow with the number of contexts.

    Args:
        hosted: The model.
        space: The nodes.
        packed: The split.
        parts: bool `(n_parts, n_contexts)`, who belongs to which part.
        estimator: Of effects.
        patch: What nodes are patched with.
        means: For mean patches.
        seed: Of the sketch.
        stage: Name in the progress.
    """
    sums = torch.zeros(len(parts), space.count)
    sketcher, sketches = _Sketcher(space, seed), []
    for number, pack in enumerate(packed):
        yield Progress(stage=stage, done=number, total=len(packed))
        run = patched(hosted, space, pack, patch, means)
        yield None
        effects = yield from estimator.estimate(run)
        chosen = parts[:, pack.first : pack.first + pack.count].float()
        sums += chosen @ effects
        sketches.append(sketcher(effects))
    return Averages(parts=sums / parts.sum(1, keepdim=True).clamp_min(1), sketches=torch.cat(sketches))


class _Sketcher:
    """Count sketch (Charikar et al. 2002): every feature has a bucket and a sign."""

    def __init__(self, space: NodeSpace, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        total = sum(space.widths)
        self._space = space
        self._bucket = torch.randint(SKETCH, (total,), generator=generator)
        self._sign = torch.randint(2, (total,), generator=generator).float() * 2 - 1

    def __call__(self, effects: Tensor) -> Tensor:
        """Sketch `(n_contexts, n_nodes)`."""
        places = range(len(self._space.places))
        summed = torch.cat([self._space.part(effects, place).sum(-2) for place in places], 1)
        sketch = torch.zeros(len(effects), SKETCH)
        return sketch.index_add_(1, self._bucket, summed * self._sign)
