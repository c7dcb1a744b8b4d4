"""A replacement layer while it is trained: one parameterisation for every kind.

    pre = (x / s_in @ W_enc + b_enc) * n        n_i = ||W_dec[:, i]|| over all outputs
    f   = pre where pre > threshold and pre > 0, else 0
    y^  = ((f / n) @ W_dec + b_dec [+ x / s_in @ W_skip.T]) * s_out

Multiplying by the decoder's norm makes features compete by what they write (SAELens calls it
`rescale_acts_by_decoder_norm`), so that one threshold serves a whole layer. The scales are powers of two:
folding them into the weights on the way out is exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trephine.domain.sites import Site

_SAMPLE = 65_537
"""Entries that bound the selection from below."""
PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a dictionary reads and writes, and the units that it is trained in."""

    site_in: Site
    sites_out: tuple[Site, ...]
    """Ascending; the first is its own layer's and carries `b_dec` and the skip path."""
    scale_in: float
    scales_out: tuple[float, ...]
    """Powers of two: activations are divided by them."""
    variances: tuple[float, ...]
    """Total variance of each output in the model's units, summed over dimensions."""

    @property
    def layer(self) -> int:
        """Layer by which its features are addressed."""
        return self.site_in.layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """Final weights in the model's units, decoders of unit norm in units of training."""

    W_enc: Tensor
    """`(d_in, d_sae)`."""
    b_enc: Tensor
    W_dec: Tensor
    """`(n_out, d_sae, d_out)`."""
    b_dec: Tensor
    threshold: Tensor
    """`(d_sae,)`, strict: active above it."""
    W_skip: Tensor | None
    """`(d_out, d_in)`."""


class Dictionary(nn.Module):
    """Trainable weights of one layer.

    Args:
        place: Sites and units.
        weights: `W_enc (d_in, d_sae)`, `b_enc (d_sae,)`, `W_dec (n_out, d_sae, d_out)`, `b_dec (d_out,)` and
            perhaps `W_skip (d_out, d_in)`, in units of training. Copied.
    """

    W_enc: nn.Parameter
    b_enc: nn.Parameter
    W_dec: nn.Parameter
    b_dec: nn.Parameter
    W_skip: nn.Parameter | None

    def __init__(self, place: Place, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.place = place
        for name in PARAMETERS:
            given = weights.get(name)
            value = None if given is None else nn.Parameter(given.detach().clone().float())
            self.register_parameter(name, value)
        self.threshold = 0.0
        """Calibrated; in units of `pre`."""

    @property
    def d_sae(self) -> int:
        """Features."""
        return self.W_enc.shape[1]

    def norms(self) -> Tensor:
        """Return decoder norms `(d_sae,)` over all outputs, never 0."""
        # Bounded inside: the root's own gradient at 0 is infinite, and times 0 it is no number.
        return self.W_dec.square().sum((0, 2)).clamp_min(1e-16).sqrt()

    def pre(self, x: Tensor) -> Tensor:
        """Return pre-activations `(..., d_sae)` of the model's own activations `(..., d_in)`."""
        return ((x / self.place.scale_in) @ self.W_enc + self.b_enc) * self.norms()

    def write(self, activations: Tensor, output: int, chosen: Tensor | None = None) -> Tensor:
        """Return what features write at one of the output sites `(..., d_out)`, in the model's units.

        Args:
            activations: `(..., d_sae)`, or `(..., len(chosen))`.
            output: Number of the output site.
            chosen: Indices of the features that the activations are of; None: all.
        """
        decoder = self.W_dec[output] / self.norms()[:, None]
        if chosen is not None:
            decoder = decoder[chosen]
        return (activations @ decoder) * self.place.scales_out[output]

    def base(self, x: Tensor) -> Tensor:
        """Return bias and skip path at the first output site, broadcastable to `(..., d_out)`."""
        raw: Tensor = self.b_dec
        if self.W_skip is not None:
            raw = raw + (x / self.place.scale_in) @ self.W_skip.T
        return raw * self.place.scales_out[0]

    def weights(self) -> dict[str, Tensor]:
        """Return the parameters that it has, by name, detached."""
        return {name: value.detach() for name, value in self.named_parameters()}

    @torch.no_grad()
    def fold(self) -> Folded:
        """Fold units and decoder norms into plain weights."""
        norms, place = self.norms(), self.place
        scales = torch.tensor(place.scales_out, device=norms.device)[:, None, None]
        skip = None if self.W_skip is None else self.W_skip * (place.scales_out[0] / place.scale_in)
        return Folded(
            W_enc=(self.W_enc * norms / place.scale_in).contiguous(),
            b_enc=self.b_enc * norms,
            W_dec=(self.W_dec / norms[:, None] * scales).contiguous(),
            b_dec=self.b_dec * place.scales_out[0],
            threshold=torch.full_like(norms, self.threshold),
            W_skip=skip,
        )


def batch_topk(pre: Tensor, k: float) -> Tensor:
    """Keep the `k` times rows largest positive entries of `pre (rows, d_sae)`; others become 0."""
    floor = batch_floor(pre, k)
    below = torch.nextafter(floor, torch.full_like(floor, -math.inf))
    # `threshold` keeps what is strictly above, in one pass each way; comparing and selecting take four.
    return functional.threshold(pre, max(0.0, float(below)), 0.0)


@torch.no_grad()
def batch_floor(pre: Tensor, k: float) -> Tensor:
    """Return the smallest pre-activation among the `k` times rows largest.

    Exact; a bound from a sample of the entries leaves few to choose from.
    """
    flat = pre.detach().reshape(-1)
    kept = max(1, min(flat.numel(), round(k * pre[..., 0].numel())))
    sample = flat[:: max(1, flat.numel() // _SAMPLE)]
    likely = max(1, min(sample.numel(), math.ceil(1.5 * kept * sample.numel() / flat.numel())))
    bound = sample.kthvalue(sample.numel() - likely + 1).values
    candidates = flat[flat >= bound]
    if len(candidates) < kept:
        candidates = flat
    return candidates.kthvalue(len(candidates) - kept + 1).values


@torch.no_grad()
def smallest(activations: Tensor) -> float:
    """Return the threshold that keeps what is active here and nothing smaller; 0 if nothing is active."""
    active = activations[activations > 0]
    return float(torch.nextafter(active.min(), active.new_tensor(0.0))) if len(active) else 0.0


def strongest(pre: Tensor, count: int) -> Tensor:
    """Keep the `count` largest entries of every row of `pre (rows, n)`, whatever their sign."""
    kept = pre.topk(min(count, pre.shape[-1]), dim=-1, sorted=False)
    return torch.zeros_like(pre).scatter(-1, kept.indices, kept.values)


def jump_relu(pre: Tensor, threshold: float) -> Tensor:
    """Keep positive entries strictly above the threshold; others become 0."""
    return functional.threshold(pre, max(0.0, threshold), 0.0)
