"""Random control features, matched per feature on layer and on how much is written.

What an operation writes on the prompt is matched where it follows a feature's activation (see
`written_on_prompt`). Elsewhere what a feature usually writes is, its *contribution norm*: the rms of its
activation over positions >= 1 of the retain text times the norm of its decoder. Position 0 is left out: it is
an attention sink whose activations are a hundred times the others' and would decide the match on its own.

Of a strong feature nearly all candidates write less, however narrow the window. So a stand-in is changed by
so much more, or less, that it writes on the prompt as much as the feature would, exactly.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import inf
from random import Random
from statistics import median
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from trephine.domain.ablation import MatchedControls, MatchedFeature, UnmatchedFeature
from trephine.domain.sites import NEURONS, FeatureRef, Site
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.neurons import neuron_site
from trephine.engine.replacements.sets import layer_info, opened
from trephine.engine.runs.retain import RetainText, plain_runs

FEWEST_CANDIDATES = 20
"""Of every feature. Sets that recombine fewer vary less than the edit would: under the null of independent
features p is 0.05 or less in 5 to 6 % of cases with 20 each, in 10 % with three each of five, in 17 % with
two each of seven. For a single feature fewer than 19 cannot show a p of 0.05."""
_WIDENINGS = (1.0, 1.5, 2.0)
_TRIES_PER_SET = 50

_KEPT: WeakKeyDictionary[Any, dict[tuple[str, str, str], Tensor]] = WeakKeyDictionary()
"""Per loaded model: (weight hash, text hash, layer of a set) -> contribution norms. Ends with the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlDraws:
    """Which features stand in for which."""

    found: tuple[MatchedFeature, ...]
    sets: tuple[tuple[FeatureRef, ...], ...]
    """Each in the order of `found`; all different. Fewer than asked for where no more exist."""
    strengths: tuple[tuple[float, ...], ...]
    """By set and feature: how much further than the feature a stand-in is moved, to write as much."""
    unmatched: tuple[UnmatchedFeature, ...]

    @property
    def matched(self) -> tuple[FeatureRef, ...]:
        """The features that have stand-ins."""
        return tuple(one.feature for one in self.found)


Norms = Mapping[tuple[str, int], Tensor]
"""Contribution norms `(d_sae,)` by replacement set and layer."""


def contribution_norms(hosted: HostedModel, retain: RetainText) -> Generator[None, None, Tensor]:
    """Measure rms activation x decoder norm of every neuron, float32 `(n_layers, d_mlp)`.

    One batch of windows a quantum; kept for the next command on the same weights and text.
    """
    layers = [(NEURONS, layer) for layer in range(hosted.info.n_layers)]
    norms = yield from norms_of(hosted, retain, layers)
    return torch.stack([norms[layer] for layer in layers])


def norms_of(
    hosted: HostedModel, retain: RetainText, layers: Iterable[tuple[str, int]]
) -> Generator[None, None, Norms]:
    """Measure rms activation x decoder norm of every feature of some layers, float32 `(d_sae,)` each.

    One batch of windows a quantum; kept for the next command on the same weights, sets and text.
    """
    kept = _KEPT.setdefault(hosted.model, {})
    keys = {layer: (hosted.info.weight_hash, retain.sha256, _version(hosted, layer)) for layer in layers}
    missing = [layer for layer, key in keys.items() if key not in kept]
    if missing:
        measured = yield from _measure_norms(hosted, retain, missing)
        kept |= {keys[layer]: norms for layer, norms in measured.items()}
    return {layer: kept[key] for layer, key in keys.items()}


def _version(hosted: HostedModel, layer: tuple[str, int]) -> str:
    return f"{layer[0]}:{layer[1]}:{layer_info(hosted, *layer).content_hash}"


def _measure_norms(
    hosted: HostedModel, retain: RetainText, layers: Sequence[tuple[str, int]]
) -> Generator[None, None, dict[tuple[str, int], Tensor]]:
    squares = {
        (name, layer): torch.zeros(layer_info(hosted, name, layer).d_sae, dtype=torch.float64)
        for name, layer in layers
    }
    sites = sorted({_site_read(hosted, *layer) for layer in layers})
    for output in plain_runs(hosted, retain, sites):
        for values, (name, layer) in product(output.values, layers):
            x = values[_site_read(hosted, name, layer)][1:]
            activations, scale = activations_in(hosted, name, layer, x)
            squares[name, layer] += (activations * scale).pow(2).sum(0).cpu()
        yield
    count = retain.n_tokens - len(retain.windows)
    found: dict[tuple[str, int], Tensor] = {}
    for name, layer in layers:
        with opened(hosted, name, [layer]) as resident:
            norms = resident[layer].decoder_norms().double().cpu()
        found[name, layer] = ((squares[name, layer] / count).sqrt() * norms).float()
    return found


def _site_read(hosted: HostedModel, name: str, layer: int) -> Site:
    return neuron_site(layer) if name == NEURONS else layer_info(hosted, name, layer).site_in


def activations_in(hosted: HostedModel, name: str, layer: int, x: Tensor) -> tuple[Tensor, Tensor | float]:
    """Return a layer's activations, float64 `(n, d_sae)`, and what one is in units of the output site."""
    if name == NEURONS:
        return x.double(), 1.0
    with opened(hosted, name, [layer]) as resident, torch.inference_mode():
        code = resident[layer].encode(x)
        scale = code.scale_out
        return code.activations.double(), scale.double() if isinstance(scale, Tensor) else scale


def draw_controls(
    norms: Norms,
    features: Sequence[FeatureRef],
    controls: MatchedControls,
    written: Mapping[FeatureRef, Tensor] = MappingProxyType({}),
) -> ControlDraws:
    """Draw random sets; per feature a candidate of its layer that writes about as much, within the factor.

    No set holds a feature twice, none holds one of `features`, no two sets are equal. Where fewer than
    `FEWEST_CANDIDATES` are within the factor it is widened for that feature, at most to its double.

    Args:
        norms: Contribution norms of every layer that a feature is of which `written` does not decide.
        features: The intervened features, each once.
        controls: How many sets, the factor and the seed.
        written: What the operations on a feature would write on the prompt, `(d_sae,)` over its layer. It
            decides where it is known and the feature's own is a number above 0; the contribution norm
            elsewhere.
    """
    rows = {feature: _matched_on(norms, written, feature) for feature in features}
    pools: dict[FeatureRef, tuple[int, ...]] = {}
    factors: dict[FeatureRef, float] = {}
    for feature in features:
        pools[feature], factors[feature] = _widened(rows[feature], feature, features, controls.norm_factor)
    matched = enough_candidates(features, pools, FEWEST_CANDIDATES)
    sets = draw_sets([pools[feature] for feature in matched], matched, controls)
    strengths = tuple(
        tuple(_strength(written, own, other) for own, other in zip(matched, drawn, strict=True))
        for drawn in sets
    )
    return ControlDraws(
        found=tuple(
            MatchedFeature(
                feature=feature,
                candidates=len(pools[feature]),
                factor=factors[feature],
                written=median(1 / one[number] for one in strengths)
                if is_decided(written, feature)
                else None,
            )
            for number, feature in enumerate(matched)
        ),
        sets=sets,
        strengths=strengths,
        unmatched=tuple(
            UnmatchedFeature(feature=feature, candidates=len(pools[feature]))
            for feature in features
            if feature not in matched
        ),
    )


def is_decided(written: Mapping[FeatureRef, Tensor], feature: FeatureRef) -> bool:
    """Say that a feature is matched on what is written on the prompt: no contribution norm is asked for."""
    return feature in written and 0 < float(written[feature][feature.index]) < inf


def _matched_on(norms: Norms, written: Mapping[FeatureRef, Tensor], feature: FeatureRef) -> Tensor:
    return written[feature] if is_decided(written, feature) else norms[place_of(feature)]


def _strength(written: Mapping[FeatureRef, Tensor], own: FeatureRef, other: FeatureRef) -> float:
    """How much further the other goes to write as much; no further where the prompt does not decide."""
    if not is_decided(written, own):
        return 1.0
    row = written[own].double()
    return float(row[own.index] / row[other.index])


def _widened(
    row: Tensor, feature: FeatureRef, taken: Sequence[FeatureRef], factor: float
) -> tuple[tuple[int, ...], float]:
    """List candidates within the factor, or within a wider one where they are too few; and which one it was.

    Features of a layer compete, so there is to be one more for each of the others.
    """
    fewest = FEWEST_CANDIDATES + sum(place_of(one) == place_of(feature) for one in taken) - 1
    pool: tuple[int, ...] = ()
    for widening in _WIDENINGS:
        pool = _candidates(row, feature, taken, factor * widening)
        if len(pool) >= fewest:
            return pool, factor * widening
    return pool, factor * _WIDENINGS[-1]


def _candidates(
    row: Tensor, feature: FeatureRef, taken: Sequence[FeatureRef], factor: float
) -> tuple[int, ...]:
    """List features of the layer that write as much within the factor, the intervened ones left out."""
    own = float(row[feature.index])
    if own == 0.0:  # a feature that never fires has no scale to match
        return ()
    near = (row >= own / factor) & (row <= own * factor)
    for other in taken:
        if place_of(other) == place_of(feature):
            near[other.index] = False
    return tuple(near.nonzero().flatten().tolist())


def place_of(feature: FeatureRef) -> tuple[str, int]:
    """Return a feature's set and layer."""
    return feature.replacement, feature.layer


def enough_candidates(
    features: Sequence[FeatureRef],
    pools: dict[FeatureRef, tuple[int, ...]],
    fewest: int = 1,
) -> tuple[FeatureRef, ...]:
    """Keep features that can all be given one of `fewest` stand-ins at once; the scarcest are dropped first.

    Features of a layer compete for its candidates. Served from the smallest pool up, the n-th of a layer
    needs n - 1 candidates more; pools are intervals of the same norm, so this is enough in practice and
    a draw that fails nevertheless is drawn again.
    """
    kept: set[FeatureRef] = set()
    served: dict[tuple[str, int], int] = {}
    for feature in sorted(features, key=lambda f: (len(pools[f]), f)):
        if len(pools[feature]) >= served.get(place_of(feature), 0) + fewest:
            served[place_of(feature)] = served.get(place_of(feature), 0) + 1
            kept.add(feature)
    return tuple(feature for feature in features if feature in kept)


def draw_sets(
    pools: Sequence[tuple[int, ...]], matched: Sequence[FeatureRef], controls: MatchedControls
) -> tuple[tuple[FeatureRef, ...], ...]:
    """Draw different sets, each with one feature out of every pool, in its layer and set of features."""
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
    taken: dict[tuple[str, int], set[int]] = {}
    chosen: dict[int, FeatureRef] = {}
    for number in sorted(range(len(matched)), key=lambda i: len(pools[i])):
        of_layer = taken.setdefault(place_of(matched[number]), set())
        free = [index for index in pools[number] if index not in of_layer]
        if not free:
            return ()
        chosen[number] = replace(matched[number], index=random.choice(free))
        of_layer.add(chosen[number].index)
    return tuple(chosen[i] for i in range(len(matched)))
