"""Drawing stand-ins for what an edit changes: matched features of its layer, and of another layer.

A control within `factor` in frequency and in size stands in for a feature. Where there are too few of them
the factor is widened, at most to its double, and the report says so. A direction's stand-in is the
difference of the site's activations at two random positions of the retain text, at the direction's length:
isotropic noise would fall where the model's activations hardly vary, and lose every comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from trephine.domain.ablation import MatchedControls, UnmatchedFeature
from trephine.domain.edit_evaluation import FeatureControls
from trephine.domain.interventions import DirectionTarget, FeatureTarget, Intervention
from trephine.domain.sites import FeatureRef, Site
from trephine.engine.edit_evaluation.uses import Place, Uses
from trephine.engine.edits.controls import draw_sets, enough_candidates, place_of

_WIDENINGS = (1.0, 1.5, 2.0)

Target = FeatureTarget | DirectionTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """Stand-ins by target, one mapping a control set."""

    sets: tuple[Mapping[Target, Target], ...]
    factor: float
    """Within which features were matched; 0 if none was."""
    unmatched: tuple[UnmatchedFeature, ...] = ()
    notes: tuple[str, ...] = field(default=())


def targets_of(interventions: Sequence[Intervention]) -> tuple[Target, ...]:
    """List features and directions that are changed, each once; whole sites have no stand-in."""
    found = [i.target for i in interventions if isinstance(i.target, FeatureTarget | DirectionTarget)]
    return tuple(dict.fromkeys(found))


def features_of(targets: Sequence[Target]) -> tuple[FeatureRef, ...]:
    """List the features among targets."""
    return tuple(target.feature for target in targets if isinstance(target, FeatureTarget))


def draw_stand_ins(
    targets: Sequence[Target],
    uses: Uses,
    activations: Mapping[Site, Tensor],
    layers: Mapping[Place, int],
    controls: FeatureControls,
    *,
    sets: int,
    seed: int,
) -> Draws:
    """Draw control sets.

    Args:
        targets: What is changed.
        uses: Of every layer that a feature is of, and of those in `layers`.
        activations: `(n_positions, width)` at the sites of directions.
        layers: The layer in which stand-ins are looked for, by set and layer of the feature.
        controls: Factor and tokens.
        sets: How many; fewer come where no more exist.
        seed: Of the draws.
    """
    features = features_of(targets)
    drawn = _draw_features(features, uses, layers, controls.factor, sets=sets, seed=seed)
    directions = [target for target in targets if isinstance(target, DirectionTarget)]
    seen = {site: _finite(activations[site]) for site in {direction.site for direction in directions}}
    still = sorted(site for site, rows in seen.items() if not _differ(rows))
    if still:
        return replace(drawn, sets=(), notes=(*drawn.notes, *map(_nothing_to_draw, still)))
    count = len(drawn.sets) if features else sets
    generator = torch.Generator().manual_seed(seed)
    found: list[Mapping[Target, Target]] = []
    for number in range(count):
        stand_ins: dict[Target, Target] = dict(drawn.sets[number]) if features else {}
        for direction in directions:
            stand_ins[direction] = _random_direction(direction, seen[direction.site], generator)
        found.append(stand_ins)
    return replace(drawn, sets=tuple(found))


def _draw_features(
    features: Sequence[FeatureRef],
    uses: Uses,
    layers: Mapping[Place, int],
    factor: float,
    *,
    sets: int,
    seed: int,
) -> Draws:
    """Match within the factor, then within wider ones until there are enough sets for every feature."""
    if not features:
        return Draws(sets=(), factor=0.0)
    drawn = Draws(sets=(), factor=0.0)
    for widening in _WIDENINGS:
        drawn = _draw_within(features, uses, layers, factor * widening, sets=sets, seed=seed)
        if len(drawn.sets) == sets and not drawn.unmatched:
            break
    notes = drawn.notes
    if drawn.factor > factor:
        notes = (*notes, f"frequency and size are matched within a factor of {drawn.factor:g}: within "
                         f"{factor:g} there are too few features")  # fmt: skip
    return replace(drawn, notes=notes)


def _draw_within(
    features: Sequence[FeatureRef],
    uses: Uses,
    layers: Mapping[Place, int],
    factor: float,
    *,
    sets: int,
    seed: int,
) -> Draws:
    others = {feature: replace(feature, layer=layers[place_of(feature)]) for feature in features}
    pools = {others[feature]: _pool(feature, others[feature], features, uses, factor) for feature in features}
    kept = enough_candidates(tuple(others.values()), pools)
    matched = [feature for feature in features if others[feature] in kept]
    drawn = draw_sets(
        [pools[others[feature]] for feature in matched],
        [others[feature] for feature in matched],
        MatchedControls(sets=max(sets, 1), norm_factor=factor, seed=seed),
    )
    return Draws(
        sets=tuple(
            {
                FeatureTarget(feature=own): FeatureTarget(feature=other)
                for own, other in zip(matched, one, strict=True)
            }
            for one in drawn[:sets]
        ),
        factor=factor,
        unmatched=tuple(
            UnmatchedFeature(feature=feature, candidates=len(pools[others[feature]]))
            for feature in features
            if feature not in matched
        ),
    )


def _pool(
    feature: FeatureRef, other: FeatureRef, taken: Sequence[FeatureRef], uses: Uses, factor: float
) -> tuple[int, ...]:
    """List features of the other's layer that are used about as often and write about as much."""
    own, there = uses[place_of(feature)], uses[place_of(other)]
    frequency, size = float(own.frequency[feature.index]), float(own.size[feature.index])
    if frequency == 0 or size == 0:  # never used on the retain text: there is nothing to match
        return ()
    near = _within(there.frequency, frequency, factor) & _within(there.size, size, factor)
    for one in taken:
        if place_of(one) == place_of(other):
            near[one.index] = False
    return tuple(near.nonzero().flatten().tolist())


def _within(values: Tensor, value: float, factor: float) -> Tensor:
    return (values >= value / factor) & (values <= value * factor)


def _finite(activations: Tensor) -> Tensor:
    """Keep the positions at which nothing overflows."""
    return activations[activations.isfinite().all(1)]


def _differ(activations: Tensor) -> bool:
    return bool((activations != activations[:1]).any())


def _nothing_to_draw(site: Site) -> str:
    return (
        f"no controls: at {site.kind.value} of layer {site.layer} no two finite activations of the retain "
        "text differ, and a stand-in for a direction is such a difference"
    )


def _random_direction(
    direction: DirectionTarget, activations: Tensor, generator: torch.Generator
) -> DirectionTarget:
    vector = torch.tensor(direction.vector, dtype=torch.float64)
    difference = torch.zeros(())
    while not difference.norm() > 0:  # two positions may hold the same, and not all of them do
        first, second = torch.randint(activations.shape[0], (2,), generator=generator).tolist()
        difference = (activations[first] - activations[second]).double()
    scaled = difference * (vector.norm() / difference.norm())
    return replace(direction, vector=tuple(scaled.tolist()))
