"""Exact derivatives of what a graph explains, at any state of the model: clean, or under a mask.

The read-outs and their shares are the clean prompt's; what they depend on is differentiated where the model
is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trephine.domain.sites import Site, SiteKind
from trephine.engine.attribution.live import live_mlp_adjoint, score_gradient
from trephine.engine.attribution.operators import FrozenOperators
from trephine.engine.attribution.places import BEFORE, MLP, PER_BLOCK, place_of
from trephine.engine.attribution.targets import Cotangents, Explained, Gauge, LogitGauge, SiteGauge, top_place
from trephine.engine.graphs.linearised import live_output_adjoint
from trephine.engine.graphs.target_attention import ScoreGauge
from trephine.engine.graphs.target_kinds import logits_at


def live_cotangents(explained: Explained, operators: FrozenOperators) -> Cotangents:
    """Return the derivative of the explained quantity by the stream, nothing frozen, at a captured state."""
    found: dict[int, Tensor] = {}
    for target in explained.targets:
        for place, cotangent in _derivative(target.gauge, operators):
            before = found.get(place)
            weighted = target.about.share * cotangent
            found[place] = weighted if before is None else before + weighted
    return found


def measured(explained: Explained, operators: FrozenOperators, values: dict[Site, Tensor]) -> float:
    """Measure the explained quantity on a captured run.

    Args:
        explained: The targets.
        operators: The run.
        values: What stood at the sites that gauges read, `(n_pos, width)`.
    """
    total = 0.0
    for target in explained.targets:
        gauge = target.gauge
        read = logits_at(operators, gauge.position) if gauge.site is None else values[gauge.site]
        total += target.about.share * float(gauge.measure(read))
    return total


def _derivative(gauge: Gauge, operators: FrozenOperators) -> Iterator[tuple[int, Tensor]]:
    """Yield places, and the derivative by the stream there, `(n_pos, d_model)`."""
    match gauge:
        case LogitGauge(readout=readout, position=position):
            cotangent = torch.zeros_like(operators.embedding)
            cotangent[position] = readout.direction.to(cotangent.dtype)
            yield top_place(operators), operators.final_norm.pull_back_live(cotangent)
        case ScoreGauge(wanted=wanted, position=position):
            layer = operators.layers[wanted.layer]
            place = PER_BLOCK * wanted.layer + BEFORE
            yield place, score_gradient(layer, wanted.head, position, wanted.key)
        case SiteGauge():
            yield _of_site(gauge, operators)
        case _:
            raise ValueError(f"{type(gauge).__name__} has no derivative here")


def _of_site(gauge: SiteGauge, operators: FrozenOperators) -> tuple[int, Tensor]:
    layer, position = operators.layers[gauge.site.layer], gauge.position
    vector, reads = gauge.vector, PER_BLOCK * gauge.site.layer + MLP
    cotangent = torch.zeros_like(operators.embedding)
    match gauge.site.kind:
        case SiteKind.NEURONS:
            by_neuron = torch.zeros_like(layer.activation)
            by_neuron[position] = vector.to(by_neuron.dtype)
            return reads, live_mlp_adjoint(layer, by_neuron)
        case SiteKind.MLP_OUT:
            cotangent[position] = live_output_adjoint(layer, vector, position)
            return reads, cotangent
        case SiteKind.MLP_IN:
            cotangent[position] = vector.to(cotangent.dtype)
            return reads, layer.mlp_norm.pull_back_live(cotangent)
        case _:
            cotangent[position] = vector.to(cotangent.dtype)
            return place_of(gauge.site), cotangent
