"""Random control features, matched per feature on layer and on how much they usually write.

A feature's *contribution norm* is the rms of its activation over positions >= 1 of the retain text times
the norm of its decoder. Position 0 is left out: it is an attention sink whose activations are a hundred
times the others' and would decide the match on its own.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from trephine.domain.ablation import MatchedControls, UnmatchedFeature
from trephine.domain.sites import FeatureRef
from trephine.engine.hosted import HostedModel
from trephine.engine.neurons import decoder_norms, neuron_site
from trephine.engine.retain import RetainText
from trephine.engine.rows import RowInput, run_rows

_TRIES_PER_SET = 50

_KEPT: WeakKeyDictionary[Any, dict[tuple[str, str], Tensor]] = WeakKeyDictionary()
"""Per loaded model: (weight hash, text hash) -> contribution norms. Ends with the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlDraws:
    """Which features stand in for which."""

    matched: tuple[FeatureRef, ...]
    sets: tuple[tuple[FeatureRef, ...], ...]
    """Each in the order of `matched`; all different. Fewer than asked for where no more exist."""
    unmatched: tuple[UnmatchedFeature, ...]


def contribution_norms(hosted: HostedModel, retain: RetainText) -> Generator[None, None, Tensor]:
    """Measure rms activation x decoder norm of every neuron, float32 `(n_layers, d_mlp)`.

    One window a quantum; kept for the next command on the same weights and text.
    """
    kept = _KEPT.setdefault(hosted.model, {})
    key = (hosted.info.weight_hash, retain.sha256)
    if key not in kept:
        kept[key] = yield from _measure_norms(hosted, retain)
    return kept[key]


def _measure_norms(hosted: HostedModel, retain: RetainText) -> Generator[None, None, Tensor]:
    sites = [neuron_site(layer) for layer in range(hosted.info.n_layers)]
    squares = torch.zeros(hosted.info.n_layers, hosted.info.d_mlp, dtype=torch.float64)
    for window in retain.windows:
        values = run_rows(hosted, [RowInput(ids=window)], reads=sites, keep_last=1).values[0]
        for site in sites:
            squares[site.layer] += values[site][1:].double().pow(2).sum(0).cpu()
        yield
    count = retain.n_tokens - len(retain.windows)
    norms = torch.stack([decoder_norms(hosted.architecture, s.layer).double().cpu() for s in sites])
    return ((squares / count).sqrt() * norms).float()


def draw_controls(norms: Tensor, features: Sequence[FeatureRef], controls: MatchedControls) -> ControlDraws:
    """Draw random sets; per feature a candidate of its layer whose norm is within the factor.

    No set holds a feature twice, none holds one of `features`, no two sets are equal.

    Args:
        norms: Contribution norms `(n_layers, d_mlp)`.
        features: The intervened features, each once.
        controls: How many sets, the factor and the seed.
    """
    pools = {feature: _candidates(norms, feature, features, controls.norm_factor) for feature in features}
    matched = _enough_candidates(features, pools)
    return ControlDraws(
        matched=matched,
        sets=_draw_sets([pools[feature] for feature in matched], matched, controls),
        unmatched=tuple(
            UnmatchedFeature(feature=feature, candidates=len(pools[feature]))
            for feature in features
            if feature not in matched
        ),
    )


def _candidates(
    norms: Tensor, feature: FeatureRef, taken: Sequence[FeatureRef], factor: float
) -> tuple[int, ...]:
    """List neurons of the layer whose norm is within the factor, the intervened ones left out."""
    row, own = norms[feature.layer], float(norms[feature.layer, feature.index])
    if own == 0.0:  # a neuron that never fires on the text has no scale to match
        return ()
    near = (row >= own / factor) & (row <= own * factor)
    for other in taken:
        if other.layer == feature.layer:
            near[other.index] = False
    return tuple(near.nonzero().flatten().tolist())


def _enough_candidates(
    features: Sequence[FeatureRef], pools: dict[FeatureRef, tuple[int, ...]]
) -> tuple[FeatureRef, ...]:
    """Keep features that can all be given a different stand-in at once; the scarcest are dropped first.

    Features of a layer compete for its candidates. Served from the smallest pool up, the n-th of a layer
    needs at least n candidates; pools are intervals of the same norm, so this is enough in practice and
    a draw that fails nevertheless is drawn again.
    """
    kept: set[FeatureRef] = set()
    served: dict[int, int] = {}
    for feature in sorted(features, key=lambda f: (len(pools[f]), f)):
        if len(pools[feature]) > served.get(feature.layer, 0):
            served[feature.layer] = served.get(feature.layer, 0) + 1
            kept.add(feature)
    return tuple(feature for feature in features if feature in kept)


def _draw_sets(
    pools: Sequence[tuple[int, ...]], matched: Sequence[FeatureRef], controls: MatchedControls
) -> tuple[tuple[FeatureRef, ...], ...]:
    random = Random(controls.seed)  # noqa: S311  reproducible draws, not secrets
    sets: dict[frozenset[FeatureRef], tuple[FeatureRef, ...]] = {}
    for _ in range(controls.sets * _TRIES_PER_SET if matched else 0):
        if len(sets) == controls.sets:
            break
        drawn = _draw_one(pools, matched, random)
        if len(set(drawn)) == len(matched):
            sets.setdefault(frozenset(drawn), drawn)
    return tuple(sets.values())


def _draw_one(
    pools: Sequence[tuple[int, ...]], matched: Sequence[FeatureRef], random: Random
) -> tuple[FeatureRef, ...]:
    """Draw a stand-in per feature, scarce ones first, so that a full set is found when there is one."""
    taken: set[tuple[int, int]] = set()
    chosen: dict[int, FeatureRef] = {}
    for place in sorted(range(len(matched)), key=lambda i: len(pools[i])):
        layer = matched[place].layer
        free = [index for index in pools[place] if (layer, index) not in taken]
        if not free:
            return ()
        index = random.choice(free)
        taken.add((layer, index))
        chosen[place] = FeatureRef(replacement=matched[place].replacement, layer=layer, index=index)
    return tuple(chosen[i] for i in range(len(matched)))
