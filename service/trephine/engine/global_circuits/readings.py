"""What one layer's features are on a pack of texts, and the weights by which they read and write."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.replacements import LayerKind, ReplacementLayerInfo
from trephine.engine.attribution.operators import FrozenOperators
from trephine.engine.attribution.places import clean_value
from trephine.engine.attribution.readouts import half_rule
from trephine.engine.global_circuits.dictionaries import Chosen, FeatureSpace, fold
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.layer import ReplacementLayer
from trephine.engine.replacements.sets import opened


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One layer's features on the rows that are read; float32 or wider."""

    activation: Tensor
    """`(n_read, d_sae)`."""
    written: Tensor
    """`(n_read, d_sae)`, activation times what outputs are multiplied by: a post-norm's scale, say."""
    reads: tuple[Tensor, ...]
    """Per read-out `(n_read, 1)` or `(n_read, d_sae)`: what a feature's pre-activation gains by one unit of
    the stream along its folded encoder. The norm's scale of that token, as attribution graphs freeze it."""


def read_layer(
    hosted: HostedModel, operators: FrozenOperators, space: FeatureSpace, place: int, read: Tensor
) -> Reading:
    """Encode a pack with the k-th layer of a space, on the rows `read`, bool `(n_rows,)`."""
    info = space.infos[place]
    if info.kind is LayerKind.NEURONS:
        return _read_neurons(operators, info, read)
    norm = operators.layers[info.layer].mlp_norm
    x = clean_value(operators, info.site_in)[read]
    with opened(hosted, space.name, [info.layer]) as resident, torch.inference_mode():
        code = resident[info.layer].encode(x)
    return Reading(
        activation=code.activations,
        written=code.activations * code.scale_out,
        reads=(norm.scale[read] / code.scale,),
    )


def _read_neurons(operators: FrozenOperators, info: ReplacementLayerInfo, read: Tensor) -> Reading:
    """Neurons as they are; their activation is split over gate and value by the half rule."""
    layer = operators.layers[info.layer]
    scale, post = layer.mlp_norm.scale[read], layer.mlp_post_norm
    activation = layer.activation[read]
    by_gate, by_read = (None if part is None else part[read] * scale for part in half_rule(layer))
    reads = (by_read,) if by_gate is None else (by_gate, by_read)
    return Reading(
        activation=activation,
        written=activation if post is None else activation * post.scale[read],
        reads=tuple(part for part in reads if part is not None),
    )


def folded_encoders(
    hosted: HostedModel, space: FeatureSpace, place: int, indices: list[int] | slice
) -> Tensor:
    """Return what features of the k-th layer read of the stream, `(readouts, n, d_model)`, at scale 1."""
    info, architecture = space.infos[place], hosted.architecture
    own = list(range(info.d_sae)) if isinstance(indices, slice) else indices
    with opened(hosted, space.name, [info.layer]) as resident, torch.inference_mode():
        value = resident[info.layer].encoders(own)
    gate = architecture.blocks[info.layer].mlp.W_gate if info.kind is LayerKind.NEURONS else None
    parts = [value] if gate is None else [gate[own].to(value.dtype), value]
    return fold(architecture, info.layer, torch.stack(parts))


def chosen_encoders(hosted: HostedModel, chosen: Chosen) -> Tensor:
    """Return `(readouts, n, d_model)` of chosen features; those of one layer at a time are resident."""
    space = chosen.space
    parts = [
        folded_encoders(hosted, space, place, chosen.indices(place))
        for place in range(len(space.infos))
        if chosen.indices(place)
    ]
    return torch.cat(parts, 1)


class RunningWrites:
    """What features of one layer have written into the stream below a block, block by block.

    Args:
        layer: Their layer, resident.
        indices: Which of its features.
    """

    def __init__(self, layer: ReplacementLayer, indices: list[int]) -> None:
        self._layer, self._indices = layer, indices
        self._sites = {site.layer: site for site in layer.info.sites_out}
        self._sum: Tensor | None = None

    def after(self, block: int) -> Tensor:
        """Add what they write beside the MLP of a block, and return the sum `(n, d_model)`.

        Blocks must be asked for in order, the features' own first.
        """
        if block in self._sites:
            written = self._layer.decoders(self._indices, self._sites[block])
            self._sum = written if self._sum is None else self._sum + written
        if self._sum is None:
            raise ValueError("the features' own block comes first")
        return self._sum
