"""How often and how strongly features are used on the retain text: what controls are matched in.

A feature of a set is used where it is active; its size is its mean activation there times the norm of its
decoder. A neuron of a gated MLP is hardly ever exactly 0, so it counts as used where its activation exceeds
its own rms, and its size is that rms times the norm of its decoder: few large activations and many small
ones of the same rms are told apart. Position 0 is left out: it is an attention sink.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from trephine.domain.sites import NEURONS, Site
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.neurons import neuron_site
from trephine.engine.replacements.sets import layer_info, opened
from trephine.engine.runs.retain import RetainText, plain_runs

Place = tuple[str, int]
"""Replacement set and layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerUse:
    """Of every feature of a layer, float64 `(d_sae,)`."""

    frequency: Tensor
    """Share of positions where it is used."""
    activation: Tensor
    """Its typical activation where it is used, in its own units."""
    decoder: Tensor
    """Norm of what one unit of it writes, scaled back in the mean as its set scales outputs back."""

    @property
    def size(self) -> Tensor:
        """Norm of what it typically writes."""
        return self.activation * self.decoder


Uses = Mapping[Place, LayerUse]

_KEPT: WeakKeyDictionary[Any, dict[tuple[str, str, str], LayerUse]] = WeakKeyDictionary()
"""Per loaded model: (weight hash, text hash, layer of a set) -> use. Ends with the model."""


def measure_uses(
    hosted: HostedModel, retain: RetainText, places: Sequence[Place], sites: Sequence[Site] = ()
) -> Generator[int, None, tuple[Uses, dict[Site, Tensor]]]:
    """Measure layers, and read sites, on the retain text; yield the windows done, one batch a quantum.

    Layers are kept for the next command on the same weights, sets and text.

    Returns:
        The use of every layer, and `(n_positions, width)` of every site, positions >= 1 of all windows.
    """
    kept = _KEPT.setdefault(hosted.model, {})
    keys = {place: (hosted.info.weight_hash, retain.sha256, _version(hosted, place)) for place in places}
    tallies = {place: _tally(hosted, place) for place, key in keys.items() if key not in kept}
    reads = sorted({*(_site_read(hosted, *place) for place in tallies), *sites})
    seen: dict[Site, list[Tensor]] = {site: [] for site in sites}
    done = 0
    for output in plain_runs(hosted, retain, reads) if reads else ():
        done += len(output.values)
        for values in output.values:
            for place, tally in tallies.items():
                tally.add(values[_site_read(hosted, *place)][1:])
            for site in sites:
                seen[site].append(values[site][1:].float().cpu())
        yield done
    kept |= {keys[place]: tally.use() for place, tally in tallies.items()}
    return {place: kept[key] for place, key in keys.items()}, {s: torch.cat(v) for s, v in seen.items()}


def _version(hosted: HostedModel, place: Place) -> str:
    return f"{place[0]}:{place[1]}:{layer_info(hosted, *place).content_hash}"


def _site_read(hosted: HostedModel, name: str, layer: int) -> Site:
    return neuron_site(layer) if name == NEURONS else layer_info(hosted, name, layer).site_in


def _tally(hosted: HostedModel, place: Place) -> _NeuronTally | _FeatureTally:
    return _NeuronTally(hosted, place) if place[0] == NEURONS else _FeatureTally(hosted, place)


class _NeuronTally:
    """Keeps a layer's activations until its rms is known."""

    def __init__(self, hosted: HostedModel, place: Place) -> None:
        self._hosted, self._place = hosted, place
        self._seen: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """Take `(n, d_mlp)`."""
        self._seen.append(x.float().cpu())

    def use(self) -> LayerUse:
        """Return the layer's use."""
        values = torch.cat(self._seen).double()
        rms = values.pow(2).mean(0).sqrt()
        return LayerUse(
            frequency=(values.abs() > rms).double().mean(0),
            activation=rms,
            decoder=_decoder_norms(self._hosted, self._place),
        )


class _FeatureTally:
    """Adds up a set's activations."""

    def __init__(self, hosted: HostedModel, place: Place) -> None:
        self._hosted, self._place = hosted, place
        width = layer_info(hosted, *place).d_sae
        self._total, self._written = torch.zeros(2, width, dtype=torch.float64)
        self._active = torch.zeros(width, dtype=torch.float64)
        self._count = 0

    def add(self, x: Tensor) -> None:
        """Take what the layer reads, `(n, d_in)`."""
        name, layer = self._place
        with opened(self._hosted, name, [layer]) as resident, torch.inference_mode():
            code = resident[layer].encode(x)
            found = code.activations.abs().double()
            written = found * code.scale_out
        self._total += found.sum(0).cpu()
        self._written += written.sum(0).cpu()
        self._active += code.active.double().sum(0).cpu()
        self._count += x.shape[0]

    def use(self) -> LayerUse:
        """Return the layer's use."""
        return LayerUse(
            frequency=self._active / max(self._count, 1),
            activation=self._total / self._active.clamp_min(1),
            decoder=_decoder_norms(self._hosted, self._place) * self._scale(),
        )

    def _scale(self) -> Tensor:
        """Return what a unit of each feature is scaled back by, weighted by its activations."""
        return torch.where(self._total > 0, self._written / self._total, 1.0)


def _decoder_norms(hosted: HostedModel, place: Place) -> Tensor:
    name, layer = place
    with opened(hosted, name, [layer]) as resident:
        return resident[layer].decoder_norms().double().cpu()
