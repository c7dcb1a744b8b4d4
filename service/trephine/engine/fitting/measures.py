"""Figures on held-out contexts, thresholds calibrated, position 0 left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from trephine.domain.fitting import FittedLayer
from trephine.domain.sites import Site
from trephine.engine.fitting.activations import FORWARD_TOKENS, read_sites
from trephine.engine.fitting.dictionary import Dictionary
from trephine.engine.fitting.reconstruction import (
    SplicedPass,
    calibrated,
    plain_logits,
    reconstruct,
    sites_of,
)
from trephine.engine.models.hosted import HostedModel


@dataclass(slots=True)
class _Sums:
    """Sums over positions of one layer's own output site."""

    error: float = 0.0
    square: float = 0.0
    total: Tensor | float = 0.0
    rows: int = 0
    active: float = 0.0
    fired: Tensor | bool = field(default=False)

    def add(self, target: Tensor, output: Tensor, activations: Tensor) -> None:
        wide = target.double()
        self.error += float((output.double() - wide).square().sum())
        self.square += float(wide.square().sum())
        self.total = self.total + wide.sum(0)
        self.rows += len(target)
        self.active += float((activations > 0).sum())
        self.fired = (activations > 0).any(0) | self.fired

    def layer(self, number: int) -> FittedLayer:
        mean = torch.as_tensor(self.total) / self.rows
        variance = self.square - self.rows * float(mean.square().sum())
        return FittedLayer(
            layer=number,
            fvu=self.error / max(variance, 1e-12),
            l0=self.active / self.rows,
            dead_share=1 - float(torch.as_tensor(self.fired).float().mean()),
        )


@torch.no_grad()
def measure_layers(
    hosted: HostedModel, dictionaries: Sequence[Dictionary], rows: Tensor
) -> tuple[FittedLayer, ...]:
    """Measure every layer by itself on contexts `(n, context_tokens)`.

    FVU is the squared error over the variance, both summed over dimensions. A feature is dead if it never
    fires on these contexts.
    """
    sums = [_Sums() for _ in dictionaries]
    for some in rows.split(max(1, FORWARD_TOKENS // rows.shape[1])):
        values = read_sites(hosted, some, sites_of(dictionaries))
        made = reconstruct(dictionaries, values, calibrated)
        for index, dictionary in enumerate(dictionaries):
            site: Site = dictionary.place.sites_out[0]
            sums[index].add(values[site], made.outputs[site], made.activations[index])
    return tuple(s.layer(d.place.layer) for s, d in zip(sums, dictionaries, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class SplicedFigures:
    """What the model says with all layers spliced, context by context."""

    ce: Tensor
    """`(n,)`, nats per token."""
    l0: float
    """Mean over layers and positions of the spliced run; 0 for the plain model."""


@torch.no_grad()
def measure_spliced(hosted: HostedModel, dictionaries: Sequence[Dictionary], rows: Tensor) -> SplicedFigures:
    """Measure next-token cross-entropy on contexts; without dictionaries, the plain model's."""
    ce, active = [], []
    for some in rows.split(max(1, FORWARD_TOKENS // rows.shape[1] // 4)):
        ids = some.to(hosted.model.device)
        spliced = SplicedPass(dictionaries=dictionaries, support=calibrated)
        logits = spliced.run(hosted, ids) if dictionaries else plain_logits(hosted, ids)
        ce.append(_cross_entropy(logits, ids))
        active += [(a > 0).sum(-1).float().mean() * len(some) for a in spliced.made.activations.values()]
    count = max(1, len(dictionaries)) * len(rows)
    return SplicedFigures(ce=torch.cat(ce).cpu(), l0=float(sum(float(a) for a in active)) / count)


def _cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    """Return mean cross-entropy per context; predictions made at positions >= 1."""
    predicted = logits[:, 1:-1].float().flatten(0, 1)
    losses = functional.cross_entropy(predicted, ids[:, 2:].flatten(), reduction="none")
    return losses.view(len(ids), -1).mean(1)
