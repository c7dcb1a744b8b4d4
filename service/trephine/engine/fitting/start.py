"""Where training starts: units, means, and for transcoders the MLP's own neurons.

A neuron becomes a feature: its encoder is a row of the gate projection (plain MLPs: of the input
projection), its decoder the column of the down projection times the slope c of a least-squares fit of the
neuron's activation on relu of that pre-activation. Where more features are wanted, the input projection's
rows serve as encoders too, with either sign. The candidates that explain most are taken; one that explains
nothing is none, since a decoder of zeros has neither a direction nor a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.fitting import FitRecipe
from trephine.domain.replacements import LayerKind
from trephine.domain.sites import Site, SiteKind
from trephine.engine.fitting.dictionary import Dictionary, Place
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.neurons import decoders
from trephine.engine.models.sites import site_width

TRANSCODERS = (LayerKind.TRANSCODER, LayerKind.SKIP_TRANSCODER)
_DECODER_NORM = 0.1
_NOTHING = 1e-12
"""Mean square, over the sample, below which a candidate's output is rounding, in units of training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What a sample of activations looks like at one site."""

    mean: Tensor
    """`(width,)`."""
    scale: float
    """Root mean square, to the nearest power of two."""
    variance: float
    """Summed over dimensions."""


def statistics(values: Tensor) -> Statistics:
    """Measure a sample `(rows, width)`."""
    wide = values.double()
    size = float(wide.square().mean().sqrt())
    return Statistics(
        mean=values.mean(0),
        scale=2.0 ** round(math.log2(size)) if size > 0 else 1.0,
        variance=max(float(wide.var(0, correction=0).sum()), 1e-12),
    )


def places(recipe: FitRecipe, layers: Sequence[int]) -> list[tuple[Site, tuple[Site, ...]]]:
    """Return input and output sites of every layer that is fitted."""
    if recipe.kind is LayerKind.SAE:
        return [(site, (site,)) for site in (Site(kind=recipe.site, layer=layer) for layer in layers)]
    last = max(layers)
    reach = {layer: last if recipe.kind is LayerKind.CROSS_LAYER_TRANSCODER else layer for layer in layers}
    return [
        (
            Site(kind=SiteKind.MLP_IN, layer=layer),
            tuple(Site(kind=SiteKind.MLP_OUT, layer=j) for j in range(layer, reach[layer] + 1)),
        )
        for layer in layers
    ]


def started(
    hosted: HostedModel, recipe: FitRecipe, layers: Sequence[int], sample: Mapping[Site, Tensor]
) -> list[Dictionary]:
    """Make the dictionaries that training starts from; the same seed makes the same ones."""
    measured = {site: statistics(values) for site, values in sample.items()}
    made = []
    for site_in, sites_out in places(recipe, layers):
        place = Place(
            site_in=site_in,
            sites_out=sites_out,
            scale_in=measured[site_in].scale,
            scales_out=tuple(measured[site].scale for site in sites_out),
            variances=tuple(measured[site].variance for site in sites_out),
        )
        generator = torch.Generator().manual_seed(recipe.seed * 4096 + site_in.layer)
        made.append(_start(hosted, recipe, place, sample, measured, generator))
    return made


def _start(
    hosted: HostedModel,
    recipe: FitRecipe,
    place: Place,
    sample: Mapping[Site, Tensor],
    measured: Mapping[Site, Statistics],
    generator: torch.Generator,
) -> Dictionary:
    d_in = site_width(hosted.architecture, place.site_in)
    d_out = site_width(hosted.architecture, place.sites_out[0])
    device, own = sample[place.site_in].device, measured[place.sites_out[0]]
    weights = _random(recipe, d_in, d_out, len(place.sites_out), generator)
    weights = {name: value.to(device) for name, value in weights.items()}
    weights["b_dec"] = own.mean / place.scales_out[0]
    if recipe.kind is LayerKind.SAE:  # encode what is left of the mean, as SAELens does by subtracting b_dec
        weights["b_enc"] = -(own.mean / place.scale_in) @ weights["W_enc"]
    elif recipe.warm_start:
        _from_neurons(hosted, place, sample[place.site_in], weights)
    return Dictionary(place, weights)


def _random(
    recipe: FitRecipe, d_in: int, d_out: int, outputs: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw unit decoders of a small norm; an SAE's encoder is their transpose."""
    decoder = torch.randn(outputs, recipe.d_sae, d_out, generator=generator)
    decoder *= _DECODER_NORM / decoder.square().sum((0, 2)).sqrt()[:, None]
    if recipe.kind is LayerKind.SAE:
        encoder = decoder[0].T
    else:
        encoder = torch.randn(d_in, recipe.d_sae, generator=generator)
        encoder *= _DECODER_NORM / encoder.norm(dim=0)
    weights = {"W_enc": encoder, "b_enc": torch.zeros(recipe.d_sae), "W_dec": decoder}
    if recipe.kind is LayerKind.SKIP_TRANSCODER:
        weights["W_skip"] = torch.zeros(d_out, d_in)
    return weights


@torch.no_grad()
def _from_neurons(hosted: HostedModel, place: Place, x: Tensor, weights: dict[str, Tensor]) -> None:
    """Overwrite the first features with the neurons that explain most of the MLP's output.

    Features that no neuron is left for keep their random start: those that never fire in the sample explain
    nothing.
    """
    mlp = hosted.architecture.blocks[place.layer].mlp
    hidden = _linear(x, mlp.W_in, mlp.b_in)
    candidates = [(mlp.W_in, mlp.b_in, 1.0)]
    if mlp.W_gate is None:
        activation = mlp.activation(hidden)
    else:
        activation = mlp.activation(_linear(x, mlp.W_gate, mlp.b_gate)) * hidden
        candidates = [(mlp.W_gate, mlp.b_gate, 1.0), (mlp.W_in, mlp.b_in, 1.0), (mlp.W_in, mlp.b_in, -1.0)]
    down = decoders(hosted.architecture, place.layer, range(mlp.W_in.shape[0])).float()
    encoder, bias, decoder, useful = [], [], [], []
    for rows, offset, sign in candidates:
        fired = (sign * _linear(x, rows, offset)).relu()
        power = fired.square().mean(0).clamp_min(1e-12)
        slope = (fired * activation).mean(0) / power
        encoder.append(sign * rows.float())
        bias.append(torch.zeros_like(slope) if offset is None else sign * offset.float())
        decoder.append(slope[:, None] * down)
        useful.append(slope.square() * power * down.square().sum(-1))
    found = torch.cat(useful).topk(min(weights["W_enc"].shape[1], sum(map(len, useful))))
    best = found.indices[found.values > _NOTHING * place.scales_out[0] ** 2]
    count = len(best)
    weights["W_enc"][:, :count] = torch.cat(encoder)[best].T * place.scale_in
    weights["b_enc"][:count] = torch.cat(bias)[best]
    weights["W_dec"][:, :count] = 0.0
    weights["W_dec"][0, :count] = torch.cat(decoder)[best] / place.scales_out[0]
    _balance(weights, count)


def _linear(x: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
    read = x @ rows.float().T
    return read if bias is None else read + bias.float()


def _balance(weights: dict[str, Tensor], count: int) -> None:
    """Give encoder and decoder of each feature equal norms; what it computes stays the same."""
    encoder = weights["W_enc"][:, :count].norm(dim=0).clamp_min(1e-8)
    decoder = weights["W_dec"][:, :count].square().sum((0, 2)).sqrt().clamp_min(1e-8)
    ratio = (decoder / encoder).sqrt()
    weights["W_enc"][:, :count] *= ratio
    weights["b_enc"][:count] *= ratio
    weights["W_dec"][:, :count] /= ratio[:, None]
