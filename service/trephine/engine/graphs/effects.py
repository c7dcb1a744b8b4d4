"""Signed effects of active features on the target: by the exact gradient, and along the graph's paths."""

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
from trephine.engine.attribution.places import AFTER, ATTENTION, MIDDLE, MLP, PER_BLOCK
from trephine.engine.attribution.targets import Cotangents, top_place
from trephine.engine.graphs.actives import ActiveFeatures
from trephine.engine.graphs.writes import blocks
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.products import product


@dataclass(frozen=True, slots=True, kw_only=True)
class PathEffects:
    """How much the target falls without a source, along the paths of the expanded rows, in logits."""

    features: Tensor
    """float32 `(n_cells,)`."""
    errors: Tensor
    """float32 `(n_errors,)`."""
    tokens: Tensor
    """float32 `(n_pos,)`."""


def path_effects(rows: Sequence[Row], active: ActiveFeatures, gains: Sequence[float]) -> PathEffects:
    """Back-substitute signed contributions: a feature's pre-activation moves its activation one to one.

    Args:
        rows: The targets' and the expanded features'.
        active: The prompt's active features.
        gains: Of every target, what the quantity loses per unit of its row.
    """
    features = torch.zeros(active.count)
    errors, tokens = torch.zeros(active.n_errors), torch.zeros(active.n_pos)
    for _, group in groupby(sorted(rows, key=lambda row: -row.layer), key=lambda row: row.layer):
        members = list(group)
        found = [_gain(row, features, active.activation, gains) for row in members]
        for row, gain in zip(members, found, strict=True):
            features.index_add_(0, row.sources, row.weights * gain)
            errors += row.errors * gain
            tokens += row.tokens * gain
    return PathEffects(features=features, errors=errors, tokens=tokens)


def _gain(row: Row, features: Tensor, activation: Tensor, gains: Sequence[float]) -> float:
    if row.cell <= LOGIT:
        return gains[LOGIT - row.cell]
    return float(features[row.cell] / activation[row.cell])


def effects_on(
    hosted: HostedModel, operators: FrozenOperators, active: ActiveFeatures, explained: Cotangents
) -> Generator[None, None, Tensor]:
    """Activation times the exact gradient of a quantity in the real model, float32 `(n_cells,)`.

    Nothing is frozen: patterns, norms and MLPs follow (attribution patching). One block per quantum.
    """
    effects = torch.zeros(active.count)
    nothing = torch.zeros_like(operators.embedding)
    adjoint = explained.get(top_place(operators), nothing)
    for layer in reversed(operators.layers):
        number, post = layer.block.layer, layer.mlp_post_norm
        first = PER_BLOCK * number
        _add(effects, hosted, active, Site(kind=SiteKind.RESID_POST, layer=number), adjoint)
        adjoint = adjoint + explained.get(first + AFTER, nothing)
        _add(effects, hosted, active, Site(kind=SiteKind.MLP_OUT, layer=number), adjoint)
        written = adjoint if post is None else post.pull_back_live(adjoint)
        by_neuron = product(written, layer.block.mlp.W_down.to(adjoint.dtype))
        _add_neurons(effects, active, number, by_neuron)
        middle = adjoint + live_mlp_adjoint(layer, by_neuron) + explained.get(first + MLP, nothing)
        if not layer.block.parallel:
            _add(effects, hosted, active, Site(kind=SiteKind.RESID_MID, layer=number), middle)
            middle = middle + explained.get(first + MIDDLE, nothing)
            _add(effects, hosted, active, Site(kind=SiteKind.ATTN_OUT, layer=number), middle)
        written = adjoint if layer.block.parallel else middle
        # What reads attention's output sees the stream through attention alone.
        written = written + explained.get(first + ATTENTION, nothing)
        adjoint = middle + live_attention_adjoint(layer, written)
        _add(effects, hosted, active, Site(kind=SiteKind.RESID_PRE, layer=number), adjoint)
        yield
    _add(effects, hosted, active, Site(kind=SiteKind.EMBED, layer=0), adjoint)
    return effects


def _add(effects: Tensor, hosted: HostedModel, active: ActiveFeatures, site: Site, adjoint: Tensor) -> None:
    """Add what the features that write a site do through it."""
    for layer in active.writers(site):
        if not layer.count or layer.info.kind is LayerKind.NEURONS:
            continue
        with torch.inference_mode():
            for block in blocks(hosted, layer, site, adjoint.dtype):
                cells, found = block.score(adjoint[:, None])
                effects[layer.start : layer.start + layer.count][cells] += found[0].float().cpu()


def _add_neurons(effects: Tensor, active: ActiveFeatures, number: int, by_neuron: Tensor) -> None:
    """Add what a layer's neurons do, given the derivative by them `(n_pos, d_mlp)`, a post-norm followed."""
    layer = active.layer_of(LayerRef(replacement=NEURONS, layer=number))
    if layer is not None:
        found = layer.activation * by_neuron[layer.position, layer.index]
        effects[layer.start : layer.end] += found.float().cpu()
