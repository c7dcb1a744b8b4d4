"""Layers whose features can be nodes of a global circuit, and one numbering of all their features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from trephine.domain.errors import (
    InvalidRequestError,
    LayerOutOfRangeError,
    TrephineError,
    UnsupportedOptionError,
)
from trephine.domain.replacements import LayerKind, ReplacementLayerInfo
from trephine.domain.sites import NEURONS, FeatureRef, SiteKind
from trephine.engine.models.architecture import Architecture
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.sets import covered_layers, layer_info, require_feature

_SUPPORTED = {
    LayerKind.TRANSCODER, LayerKind.SKIP_TRANSCODER, LayerKind.CROSS_LAYER_TRANSCODER, LayerKind.NEURONS,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FeatureSpace:
    """All features of some layers of one set, numbered from the bottom up."""

    name: str
    infos: tuple[ReplacementLayerInfo, ...]
    """By layer, ascending."""
    readouts: int
    """Linear read-outs that one feature has: 2 of gated neurons, whose gate and value read the stream."""

    @cached_property
    def offsets(self) -> Tensor:
        """`offsets[k] : offsets[k + 1]` are the features of the k-th layer; int64 on the CPU."""
        widths = torch.tensor([0, *(info.d_sae for info in self.infos)])
        return widths.cumsum(0)

    @property
    def count(self) -> int:
        """Number of features."""
        return int(self.offsets[-1])

    @property
    def layers(self) -> tuple[int, ...]:
        """Of the model, ascending."""
        return tuple(info.layer for info in self.infos)

    def part(self, values: Tensor, place: int) -> Tensor:
        """Return the k-th layer's part of `(..., count)`."""
        return values[..., int(self.offsets[place]) : int(self.offsets[place + 1])]

    def split(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the place of the layer and the index of `features (n,)`."""
        place = torch.searchsorted(self.offsets, features, right=True) - 1
        return place, features - self.offsets[place]

    def number(self, feature: FeatureRef) -> int:
        """Return the number of a feature of one of the layers."""
        return int(self.offsets[self.layers.index(feature.layer)]) + feature.index

    def refs(self, features: Tensor) -> list[FeatureRef]:
        """Return the addresses of `features (n,)`."""
        place, index = self.split(features)
        return [
            FeatureRef(replacement=self.name, layer=self.infos[k].layer, index=i)
            for k, i in zip(place.tolist(), index.tolist(), strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Some features of a space, ascending, by layer."""

    space: FeatureSpace
    features: Tensor
    """int64 `(n,)`, ascending, on the CPU."""

    @property
    def count(self) -> int:
        """Number of features."""
        return len(self.features)

    @cached_property
    def bounds(self) -> tuple[int, ...]:
        """`bounds[k] : bounds[k + 1]` are those of the k-th layer of the space."""
        return tuple(torch.searchsorted(self.features, self.space.offsets).tolist())

    def indices(self, place: int) -> list[int]:
        """Return the indices of those of the k-th layer."""
        own = self.features[self.bounds[place] : self.bounds[place + 1]]
        indices: list[int] = (own - self.space.offsets[place]).tolist()
        return indices

    def part(self, place: int) -> slice:
        """Return where those of the k-th layer stand."""
        return slice(self.bounds[place], self.bounds[place + 1])

    @cached_property
    def layer(self) -> Tensor:
        """The model's layer of each, int64 `(n,)`."""
        place, _ = self.space.split(self.features)
        return torch.tensor(self.space.layers)[place]


def feature_space(hosted: HostedModel, name: str, layers: Sequence[int] | None) -> FeatureSpace:
    """Lay out the features of a set.

    Raises:
        ReplacementNotFoundError: If there is no such set.
        LayerOutOfRangeError: If the model or the set does not have a layer.
        UnsupportedOptionError: If features of a layer do not read the stream in front of an MLP, or do not
            write what MLPs write.
        InvalidRequestError: If fewer than two layers are left.
    """
    try:
        covered = covered_layers(hosted, name)
    except TrephineError as error:
        raise error.with_field("replacement") from None
    for index, layer in enumerate(layers or ()):
        if layer not in covered:
            raise LayerOutOfRangeError(
                f"{name} does not cover layer {layer}; it has {', '.join(map(str, covered))}. Name some of "
                "these",
                field=f"layers[{index}]",
                layer=layer,
            )
    infos = [layer_info(hosted, name, layer) for layer in covered if layers is None or layer in layers]
    for info in infos:
        _check(info, name)
    if len(infos) < 2:
        raise InvalidRequestError(
            f"edges lead from one layer to a higher one, and only {len(infos)} is taken: take at least two",
            field="layers",
        )
    gated = name == NEURONS and hosted.architecture.blocks[0].mlp.gated
    return FeatureSpace(
        name=name, infos=tuple(sorted(infos, key=lambda info: info.layer)), readouts=2 if gated else 1
    )


def _check(info: ReplacementLayerInfo, name: str) -> None:
    outputs = {site.kind for site in info.sites_out}
    if info.kind in _SUPPORTED and info.site_in.kind is SiteKind.MLP_IN and outputs == {SiteKind.MLP_OUT}:
        return
    raise UnsupportedOptionError(
        f"layer {info.layer} of {name} is a {info.kind.value} from {info.site_in.kind.value} to "
        f"{', '.join(sorted(kind.value for kind in outputs))}: a virtual weight is what one feature "
        "writes into the stream times what another reads there in front of an MLP. Global circuits are of "
        "transcoders from mlp_in to mlp_out, cross-layer transcoders, and neurons",
        field="replacement",
        layer=info.layer,
    )


def start_features(hosted: HostedModel, space: FeatureSpace, features: Sequence[FeatureRef]) -> list[int]:
    """Return the numbers of features that a circuit is grown from.

    Raises:
        LayerOutOfRangeError: If a layer is not one of the circuit's.
        FeatureOutOfRangeError: If there is no such feature.
    """
    found = []
    for number, feature in enumerate(features):
        field = f"start_features[{number}]"
        require_feature(hosted, feature, field=field)
        if feature.layer not in space.layers:
            raise LayerOutOfRangeError(
                f"{field} is of layer {feature.layer}, and the circuit is of layers "
                f"{', '.join(map(str, space.layers))}: take this layer too",
                field=f"{field}.layer",
                layer=feature.layer,
            )
        found.append(space.number(feature))
    return found


def fold(architecture: Architecture, layer: int, directions: Tensor) -> Tensor:
    """Carry read-outs `(..., d_model)` of what a layer's MLP reads to the stream, at a norm's scale of 1."""
    norm = architecture.blocks[layer].mlp_norm
    return norm.centre(directions * norm.gain.to(directions.dtype))
