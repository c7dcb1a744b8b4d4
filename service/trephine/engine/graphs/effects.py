"""Signed effects of what stands in a graph: by the exact gradient, and along the graph's paths."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from trephine.domain.replacements import LayerKind
from trephine.domain.sites import NEURONS, LayerRef, Site, SiteKind
from trephine.engine.attribution.influence import LOGIT, Row
from trephine.engine.attribution.live import live_attention_adjoint, live_mlp_adjoint
from trephine.engine.attribution.operators import FrozenOperators
from trephine.engine.attribution.places import AFTER, ATTENTION, BEFORE, MIDDLE, MLP, PER_BLOCK
from trephine.engine.attribution.targets import Cotangents, top_place
from trephine.engine.graphs.actives import ActiveFeatures
from trephine.engine.graphs.writes import blocks
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.products import product


@dataclass(frozen=True, slots=True, kw_only=True)
class Effects:
    """What a first-order step says that the target falls without a source, in its units."""

    features: Tensor
    """float32 `(n_cells,)`."""
    errors: Tensor
    """float32 `(n_errors,)`."""


def path_effects(rows: Sequence[Row], active: ActiveFeatures, gains: Sequence[float]) -> Tensor:
    """Back-substitute signed contributions: a feature's pre-activation moves its activation one to one.

    Args:
        rows: The targets' and the expanded features'.
        active: The prompt's active features.
        gains: Of every target, what the quantity loses per unit of its row.

    Returns:
        How much the target falls without a feature, along the paths of these rows, float32 `(n_cells,)`.
    """
    features = torch.zeros(active.count)
    for _, group in groupby(sorted(rows, key=lambda row: -row.layer), key=lambda row: row.layer):
        members = list(group)
        found = [_gain(row, features, active.activation, gains) for row in members]
        for row, gain in zip(members, found, strict=True):
            features.index_add_(0, row.sources, row.weights * gain)
    return features


def _gain(row: Row, features: Tensor, activation: Tensor, gains: Sequence[float]) -> float:
    if row.cell <= LOGIT:
        return gains[LOGIT - row.cell]
    return float(features[row.cell] / activation[row.cell])


def effects_on(
    hosted: HostedModel, operators: FrozenOperators, active: ActiveFeatures, explained: Cotangents
) -> Generator[None, None, Effects]:
    """Return what sources write times the exact gradient of a quantity in the real model.

    Nothing is frozen, and nothing ends at a dictionary: patterns, norms and MLPs follow (attribution
    patching), so that no effect depends on which features are selected. One block per quantum.
    """
    met = _Met(hosted, active)
    nothing = torch.zeros_like(operators.embedding)
    adjoint = explained.get(top_place(operators), nothing)
    for layer in reversed(operators.layers):
        number, post = layer.block.layer, layer.mlp_post_norm
        first = PER_BLOCK * number
        met.at(Site(kind=SiteKind.RESID_POST, layer=number), adjoint)
        adjoint = adjoint + explained.get(first + AFTER, nothing)
        met.at(Site(kind=SiteKind.MLP_OUT, layer=number), adjoint)
        written = adjoint if post is None else post.pull_back_live(adjoint)
        by_neuron = product(written, layer.block.mlp.W_down.to(adjoint.dtype))
        met.neurons(number, by_neuron)
        middle = adjoint + live_mlp_adjoint(layer, by_neuron) + explained.get(first + MLP, nothing)
        if not layer.block.parallel:
            met.at(Site(kind=SiteKind.RESID_MID, layer=number), middle)
            middle = middle + explained.get(first + MIDDLE, nothing)
            met.at(Site(kind=SiteKind.ATTN_OUT, layer=number), middle)
        written = adjoint if layer.block.parallel else middle
        # What reads attention's output sees the stream through attention alone.
        written = written + explained.get(first + ATTENTION, nothing)
        adjoint = middle + live_attention_adjoint(layer, written) + explained.get(first + BEFORE, nothing)
        met.at(Site(kind=SiteKind.RESID_PRE, layer=number), adjoint)
        yield
    met.at(Site(kind=SiteKind.EMBED, layer=0), adjoint)
    return Effects(features=met.features, errors=met.errors.flatten())


class _Met:
    """Effects of the features and error terms that an adjoint has met on its way down."""

    def __init__(self, hosted: HostedModel, active: ActiveFeatures) -> None:
        self._hosted, self._active = hosted, active
        self.features = torch.zeros(active.count)
        self.errors = torch.zeros(len(active.error_sites), active.n_pos)

    def at(self, site: Site, adjoint: Tensor) -> None:
        """Add what is written at a site, `adjoint (n_pos, d_model)` there."""
        for layer in self._active.writers(site):
            if not layer.count or layer.info.kind is LayerKind.NEURONS:
                continue
            with torch.inference_mode():
                for block in blocks(self._hosted, layer, site, adjoint.dtype):
                    cells, found = block.score(adjoint[:, None])
                    self.features[layer.start : layer.end][cells] += found[0].float().cpu()
        if site in self._active.errors:
            found = (self._active.errors[site] * adjoint).sum(-1)
            self.errors[self._active.error_sites.index(site)] = found.float().cpu()

    def neurons(self, number: int, by_neuron: Tensor) -> None:
        """Add what a layer's neurons do, given the derivative by them `(n_pos, d_mlp)`."""
        layer = self._active.layer_of(LayerRef(replacement=NEURONS, layer=number))
        if layer is not None:
            found = layer.activation * by_neuron[layer.position, layer.index]
            self.features[layer.start : layer.end] += found.float().cpu()
