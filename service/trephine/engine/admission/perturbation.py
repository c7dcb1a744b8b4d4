"""Does the replacement model move as the true model does? One feature is taken away in both.

A feature that is active at a position has its contribution subtracted where it is written. In the true
model everything above answers; in the replacement model the layers above run on their reconstructions, with
the errors of the plain run frozen (Ameisen et al. 2025, perturbation experiments). Compared is the change of
the residual stream after each later layer, at this position and all after it, less the perturbation itself:
that part passes through unchanged in both and would flatter both figures. Per depth: the cosine of the two
changes, and |predicted - true|^2 / |true|^2. Controls answer to the same perturbations: figures are paired.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.replacements import DepthFaithfulness, Dictionary, ReplacementLayerInfo
from trephine.domain.sites import Site, SiteKind
from trephine.engine.admission.splice import (
    LayerSource,
    Splice,
    Values,
    reconstructions,
    resumed,
    run_context,
    silenced,
)
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.sites import Touch
from trephine.engine.replacements.positions import ALL_LATER, Scope
from trephine.engine.replacements.scores import Bootstrap, Ratio

CONTEXTS = 8
"""Pairs are spread over this many contexts at most: each costs a plain run."""
_NOTHING = 1e-6
"""A change below this share of the perturbation is rounding and is left out."""


_IN_STREAM = (
    SiteKind.EMBED,
    SiteKind.RESID_PRE,
    SiteKind.RESID_MID,
    SiteKind.RESID_POST,
    SiteKind.ATTN_OUT,
    SiteKind.MLP_OUT,
)
"""Sites of which a change is the same change of the residual stream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One perturbed feature, compared at one depth."""

    dictionary: Dictionary
    """Whose layers answered."""
    context: int
    depth: int
    cosine: float
    nmse: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Perturbation:
    layer: int
    position: int
    added: dict[Site, Tensor]
    """`(width,)` by site of the feature's outputs."""


def perturb(
    hosted: HostedModel,
    sources: Mapping[Dictionary, LayerSource],
    contexts: Sequence[tuple[int, ...]],
    *,
    count: int,
    seed: int,
    scope: Scope = ALL_LATER,
) -> Generator[Progress | None, None, list[Pair]]:
    """Perturb `count` features of the set, drawn by seed; one forward pass a quantum.

    Args:
        hosted: The model.
        sources: The set as `GIVEN`, and controls of the same layers: each answers as the replacement model.
        contexts: The text.
        count: Features.
        seed: Of their choice.
        scope: Positions that they are drawn from.
    """
    chooser = random.Random(seed)  # noqa: S311  sampling, not secrets
    source = sources[Dictionary.GIVEN]
    layers = [info.layer for info in source.infos if _comparable(info, hosted.info.n_layers)]
    used = contexts[: min(CONTEXTS, len(contexts))]
    pairs: list[Pair] = []
    done = 0
    if not layers:
        return pairs
    streams = [Site(kind=SiteKind.RESID_POST, layer=layer) for layer in range(hosted.info.n_layers)]
    starts = [Site(kind=SiteKind.RESID_PRE, layer=layer) for layer in layers]
    for number, ids in enumerate(used):
        _, plain = run_context(hosted, ids, {}, reads=[*source.sites, *streams, *starts], keep_last=1)
        yield None
        quota = count * (number + 1) // len(used) - count * number // len(used)
        drawn = [
            _choose(source, plain, chooser, chooser.choice(layers), scope.places(ids)[:-1])
            for _ in range(quota)
        ]
        answers = {name: _Answer(of_one, plain) for name, of_one in sources.items()}
        done += drawn.count(None)
        # From the top down: errors of upper layers are then computed once for all perturbations below.
        for chosen in sorted(filter(None, drawn), key=lambda one: one.layer, reverse=True):
            pairs += yield from _compare(hosted, answers, ids, plain, chosen, number)
            done += 1
            yield Progress(stage="perturb", done=done, total=count)
    return pairs


def _comparable(info: ReplacementLayerInfo, n_layers: int) -> bool:
    """True if there are layers above, and what it writes is part of the residual stream."""
    return info.layer < n_layers - 1 and all(site.kind in _IN_STREAM for site in info.sites_out)


@torch.inference_mode()
def _choose(
    source: LayerSource, plain: Values, chooser: random.Random, layer: int, places: Sequence[int]
) -> _Perturbation | None:
    """Draw one of the places and one of the features that are active there, by the size of what it writes.

    Features that write next to nothing would measure how thresholds flip, not how the model answers.
    """
    if not places:
        return None
    info = next(info for info in source.infos if info.layer == layer)
    with source.open([layer]) as layers:
        x = plain[info.site_in]
        position = chooser.choice(places)
        code = layers[layer].encode(x[position : position + 1])
        active = code.active[0].nonzero().flatten().tolist()
        if not active:
            return None
        sizes = code.activations[0, active].abs().double() * layers[layer].decoder_norms()[active].double()
        if not float(sizes.sum()) > 0.0:
            return None
        index = chooser.choices(active, weights=sizes.tolist())[0]
        value = code.activations[0, index] * code.scale_out
        added = {
            site: (-value * layers[layer].decoders([index], site)[0]).reshape(-1) for site in info.sites_out
        }
    return _Perturbation(layer=layer, position=position, added=added)


class _Answer:
    """A dictionary as the replacement model of one context, with the errors of its upper layers.

    Args:
        source: Its layers.
        plain: The plain run's activations.
    """

    def __init__(self, source: LayerSource, plain: Values) -> None:
        self._source, self._plain = source, plain
        self._sums: dict[Site, Tensor] = {}
        self._floor = inf

    @torch.inference_mode()
    def above(self, layer: int) -> tuple[LayerSource, Values]:
        """Return the layers above one, and their errors; ask from the top down."""
        infos = tuple(info for info in self._source.infos if info.layer > layer)
        missing = tuple(info for info in infos if info.layer < self._floor)
        for site, value in reconstructions(replace(self._source, infos=missing), self._plain).items():
            self._sums[site] = self._sums[site] + value if site in self._sums else value
        self._floor = layer + 1
        return replace(self._source, infos=infos), {
            site: self._plain[site] - value for site, value in self._sums.items()
        }


def _compare(
    hosted: HostedModel,
    answers: Mapping[Dictionary, _Answer],
    ids: tuple[int, ...],
    plain: Values,
    chosen: _Perturbation,
    context: int,
) -> Generator[None, None, list[Pair]]:
    after = range(chosen.layer + 1, hosted.info.n_layers)
    reads = [Site(kind=SiteKind.RESID_POST, layer=layer) for layer in after]
    stream = plain[Site(kind=SiteKind.RESID_PRE, layer=chosen.layer)]
    run = partial(run_context, hosted, ids, reads=reads, keep_last=1)
    with resumed(hosted.architecture, chosen.layer, stream):
        true = run(touches=_adding({}, chosen))[1]
    yield
    pairs: list[Pair | None] = []
    for dictionary, answer in answers.items():
        above, errors = answer.above(chosen.layer)
        replaced = []
        for perturbation in (None, chosen):
            touches = Splice(source=above, errors=errors).touches()
            with (
                resumed(hosted.architecture, chosen.layer, stream),
                silenced(hosted.architecture, above.sites_out, read=above.sites_in),
            ):
                replaced.append(run(touches=_adding(touches, perturbation))[1])
            yield
        still, moved = replaced
        pairs += [_pair(site, (plain, true), (dictionary, still, moved), chosen, context) for site in reads]
    return [pair for pair in pairs if pair is not None]


def _adding(touches: dict[Site, Touch], chosen: _Perturbation | None) -> dict[Site, Touch]:
    """Add the perturbation, if there is one, to what other touches leave at its sites."""
    if chosen is None:
        return touches

    def touch(site: Site, before: Touch | None, x: Tensor) -> None:
        if before is not None:
            before(x)
        x[:, chosen.position] += chosen.added[site].to(x.dtype)

    return {**touches, **{site: partial(touch, site, touches.get(site)) for site in chosen.added}}


def _pair(
    site: Site,
    true: tuple[Values, Values],
    replaced: tuple[Dictionary, Values, Values],
    chosen: _Perturbation,
    context: int,
) -> Pair | None:
    """Compare the changes at a site; both models are given as their run without and with the perturbation.

    Which pairs are left out depends on the true model alone, so that dictionaries are compared on the same
    ones; one that does not answer at all has cosine 0 and NMSE 1. The replacement model's run without the
    perturbation is the plain run but for features within rounding of their thresholds (law 2); taking its
    own keeps these out of its change.
    """
    dictionary, *answer = replaced
    rows = slice(chosen.position, None)
    passed = torch.stack([added for at, added in chosen.added.items() if at.layer <= site.layer]).sum(0)
    change, guess = (
        after[site][rows].double() - before[site][rows].double() for before, after in (true, answer)
    )
    change[0] -= passed.double()
    guess[0] -= passed.double()
    size, told = float(change.norm()), float(guess.norm())
    if size <= _NOTHING * float(passed.norm()):
        return None
    return Pair(
        dictionary=dictionary,
        context=context,
        depth=site.layer - chosen.layer,
        cosine=float((change * guess).sum()) / (size * told) if told else 0.0,
        nmse=float((guess - change).square().sum()) / size**2,
    )


def by_depth(pairs: Sequence[Pair], *, samples: int, seed: int) -> tuple[DepthFaithfulness, ...]:
    """Average pairs by depth, the set first and its controls after it; intervals resample contexts."""
    found = []
    dictionaries = tuple(dict.fromkeys(pair.dictionary for pair in pairs))
    for depth in sorted({pair.depth for pair in pairs}):
        for dictionary in dictionaries:
            chosen = [pair for pair in pairs if (pair.depth, pair.dictionary) == (depth, dictionary)]
            cosine, nmse = over_depths(chosen, dictionary)
            bootstrap = Bootstrap(len(cosine.numerator), samples, seed)
            found.append(
                DepthFaithfulness(
                    dictionary=dictionary,
                    depth=depth,
                    cosine=bootstrap.figure("cosine", cosine),
                    nmse=bootstrap.figure("nmse", nmse),
                    pairs=len(chosen),
                )
            )
    return tuple(found)


def over_depths(pairs: Sequence[Pair], dictionary: Dictionary) -> tuple[Ratio, Ratio]:
    """Return one dictionary's mean cosine and NMSE over pairs, whatever their depth, by context."""
    of_one = [pair for pair in pairs if pair.dictionary is dictionary]
    contexts = sorted({pair.context for pair in of_one})
    grouped = [[pair for pair in of_one if pair.context == context] for context in contexts]
    sizes = torch.tensor([len(group) for group in grouped], dtype=torch.float64)
    cosines, nmses = (
        torch.tensor([sum(getattr(pair, name) for pair in group) for group in grouped], dtype=torch.float64)
        for name in ("cosine", "nmse")
    )
    return Ratio(numerator=cosines, denominator=sizes), Ratio(numerator=nmses, denominator=sizes)
