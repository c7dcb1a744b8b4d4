"""What every feature adds to a decision on every text: gradient times activation, by the engine's adjoints.

A contribution is minus the estimated effect of zeroing the feature (Marks et al. 2025), so that the
contributions of one text lie in logits of the decision and may be compared between texts.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.dataset_circuits import Estimator, NodeAblation, PositionRule
from trephine.domain.errors import LayerOutOfRangeError
from trephine.domain.interventions import ErrorTerm
from trephine.domain.sites import FeatureRef
from trephine.domain.spurious_sizes import FEWEST_EFFECT_TEXTS, MATRIX_BYTES
from trephine.engine.attribution.operators import FrozenOperators
from trephine.engine.dataset_circuits.averaging import patched
from trephine.engine.dataset_circuits.contexts import Context
from trephine.engine.dataset_circuits.estimators import EffectEstimator, estimator_of
from trephine.engine.dataset_circuits.packs import Pack, packs
from trephine.engine.dataset_circuits.places import Place
from trephine.engine.dataset_circuits.space import NodeSpace, node_space
from trephine.engine.dataset_circuits.sweeping import SweepRule
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.sites import place_in_pass
from trephine.engine.replacements.sets import covered_layers
from trephine.engine.spurious.pooling import Ids, Readout


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadReadOff:
    """A sweep that begins at a linear head's pooled input."""

    readout: Readout
    direction: Tensor
    """`(d_model,)`: the decision, or a probe of something else at the same site."""

    @property
    def layer(self) -> int | None:
        """The block after which the stream is read."""
        return self.readout.layer

    def adjoint(self, pack: Pack, operators: FrozenOperators, rule: SweepRule) -> Tensor:
        """Spread over the rows that are pooled; through the final norm where it is read behind it."""
        direction = self.direction.to(device=operators.device, dtype=operators.dtype)
        rows = self.readout.spread(direction, pack.clean)
        return rows if self.layer is not None else rule.through_norm(operators.final_norm, rows)


def feature_space(
    hosted: HostedModel, replacement: str, layers: Sequence[int] | None, readout: Readout
) -> NodeSpace:
    """Lay out the features that can reach a head.

    Raises:
        ReplacementNotFoundError: If there is no such set.
        LayerOutOfRangeError: If a layer is not covered, or is not wholly before the head's site, or none is.
    """
    wanted = layers
    if readout.layer is not None and layers is None:
        wanted = [layer for layer in covered_layers(hosted, replacement) if layer <= readout.layer]
    space = node_space(hosted, (replacement,), wanted, PositionRule.SUMMED, 2, ErrorTerm.LIVE)
    if readout.layer is None:
        return space
    places = tuple(place for place in space.places if _top(place) <= readout.layer)
    _require_read(replacement, layers, readout.layer, space.places, places)
    return NodeSpace(places=tuple(sorted(places, key=lambda p: place_in_pass(p.source))), n_pos=None)


def _top(place: Place) -> int:
    """Return the last layer that a place's features write."""
    return max(site.layer for site in place.outputs)


def _require_read(
    replacement: str,
    asked: Sequence[int] | None,
    site: int,
    laid: Sequence[Place],
    read: Sequence[Place],
) -> None:
    """Refuse layers that a head after layer `site` reads in part or not at all, where they were asked for."""
    cut = {place.layer: _top(place) for place in laid if place not in read}
    for number, layer in enumerate(asked or ()):
        if layer in cut:
            raise LayerOutOfRangeError(
                f"layer {layer} of {replacement} writes up to layer {cut[layer]}, above the head, which "
                f"reads after layer {site}: it would see a part of its features. Leave it out, or let the "
                "head read later",
                field=f"layers[{number}]",
                layer=layer,
            )
    if not read:
        lowest = f"; layer {min(cut)} writes up to layer {cut[min(cut)]}" if cut else ""
        raise LayerOutOfRangeError(
            f"no layer of {replacement} lies wholly before the head, which reads after layer {site}{lowest}. "
            "Let the head read later, or name another set",
            field="decision.layer",
            layer=site,
        )


def feature_of(space: NodeSpace, number: int) -> FeatureRef:
    """Return a node's address."""
    place, _, index = space.split(torch.tensor([number]))
    described = space.places[int(place)]
    return FeatureRef(replacement=described.owner, layer=described.layer, index=int(index))


def texts_within(space: NodeSpace, wanted: int) -> int:
    """Return how many texts a matrix over all features may have."""
    return max(FEWEST_EFFECT_TEXTS, min(wanted, MATRIX_BYTES // (4 * space.count)))


class Contributions:
    """Measures what features add to one or more directions of a readout."""

    def __init__(
        self, hosted: HostedModel, space: NodeSpace, readout: Readout, estimator: Estimator, steps: int
    ) -> None:
        self._hosted, self._space, self._readout = hosted, space, readout
        self._estimator, self._steps = estimator, steps

    def of(
        self, texts: Sequence[Ids], directions: Sequence[Tensor], nodes: Tensor | None = None
    ) -> Generator[int | None, None, list[Tensor]]:
        """Return float32 `(n_texts, n)` per direction: of `nodes (n,)`, or of all.

        Yields how many texts are done, or None between.
        """
        found: list[list[Tensor]] = [[] for _ in directions]
        for pack in packs([self._context(ids) for ids in texts], texts, self._hosted.model.device):
            run = patched(self._hosted, self._space, pack, NodeAblation.ZERO, (), top=self._readout.layer)
            yield None
            for place, direction in enumerate(directions):
                effects = yield from self._by(direction).estimate(run)
                found[place].append(-(effects if nodes is None else effects[:, nodes]))
            yield pack.first + pack.count
        width = self._space.count if nodes is None else len(nodes)
        return [torch.cat(parts) if parts else torch.zeros(0, width) for parts in found]

    def _by(self, direction: Tensor) -> EffectEstimator:
        return estimator_of(
            self._hosted,
            self._space,
            self._estimator,
            steps=self._steps,
            candidates=None,
            read_off=HeadReadOff(readout=self._readout, direction=direction),
        )

    def _context(self, ids: Ids) -> Context:
        return Context(
            text="", ids=ids, twin=None, direction=torch.zeros(self._hosted.info.d_model), bias=0.0
        )
