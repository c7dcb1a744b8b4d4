"""Paths of one edge: a best-first search from the target down, through heads and skip paths.

A path's *probe* is the target's direction carried back along its hops (Dunefsky et al. 2024). What the source
does to the stream along all paths at once is known beforehand (`tangents.py`), so that every candidate hop is
ranked by all that lies below it, exactly, and what is left out is exactly what remains.

Probes are kept apart from scalars: vectors hold weights and gains (decided by the model), `scale` the norm
scales and patterns (decided by the input). Their product is the adjoint of the sweep.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor

from trephine.domain.circuit_edges import Hop, HopKind
from trephine.engine.attribution.operators import FrozenLayer
from trephine.engine.attribution.places import ATTENTION, MLP, first_block
from trephine.engine.graphs.tangents import FrozenNetwork, Reading, Tangent, value_change

_CHILDREN = 64
"""Hops of one probe that are followed up at most; the rest stays in the remainder."""
_FEWEST_EXPANDED, _EXPANDED = 64, 8
"""Probes that are expanded: at least, and per path that is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Where a path has come to, going down."""

    layer: int
    reading: Reading
    position: int
    directions: Tensor
    """`(n_readouts, d_model)`, on the stream that is read; gains and centring in, scales out."""
    scale: Tensor
    """`(n_readouts,)`."""
    hops: tuple[Hop, ...] = ()
    """From the target down."""
    only_heads_of: int | None = None
    """A layer whose heads alone are read (dictionaries on attention's output)."""

    def dot(self, tangent: Tensor) -> float:
        """What reaches the target from a change of the stream `(n_pos, d_model)` that is read here."""
        return float(self.scale @ (self.directions @ tangent[self.position]))


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPath:
    """A whole path, per unit of the source."""

    probe: Probe
    weight: float
    parts: tuple[float, ...]
    """`(n_readouts,)`, direction times what is written, scales out."""


@dataclass(slots=True, kw_only=True)
class EdgeSearch:
    """One edge: a target's probe, and what a unit of the source does."""

    network: FrozenNetwork
    target: Probe
    routed: Tangent
    """Along all paths."""
    straight: Tangent
    """Along the residual stream alone."""
    cut: int
    """Place of the dictionary on the stream that the target's stretch begins at; -2 if there is none."""
    _values: dict[int, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """The edge, along all paths."""
        only = self.target.only_heads_of
        if only is not None:
            return float(self._through_heads(self.target, only).sum())
        return self.target.dot(self.routed.at(self.target.layer, self.target.reading))

    def direct(self, probe: Probe) -> float:
        """The part of a probe that takes no further hop."""
        if probe.only_heads_of is not None:
            return 0.0
        return probe.dot(self.straight.at(probe.layer, probe.reading))

    def hops(self, probe: Probe, most: int) -> list[tuple[Hop, float]]:
        """Return up to `most` next hops, heaviest first, each with all that reaches the target through it."""
        layers = [probe.only_heads_of] if probe.only_heads_of is not None else self._heads_below(probe)
        found = [
            (self._hop(self.network.operators.layers[layer], probe, head, key), weight)
            for layer, head, key, weight in _heaviest(
                layers, [self._through_heads(probe, layer) for layer in layers], most
            )
        ]
        for layer in () if probe.only_heads_of is not None else self._skips_below(probe):
            below = self._below_skip(probe, layer)
            found.append((below.hops[-1], below.dot(self.routed.at(layer, Reading.MID))))
        return heapq.nlargest(most, found, key=lambda each: abs(each[1]))

    def _heads_below(self, probe: Probe) -> list[int]:
        """List the layers whose heads write what a probe reads."""
        parallel = self.network.operators.layers[probe.layer].block.parallel
        end = probe.layer + (probe.reading.value > Reading.PRE.value)
        if parallel and probe.reading in (Reading.MID, Reading.MID_BEFORE_CUT):
            end -= 1
        layers = range(first_block(self.cut, ATTENTION), end)
        return [layer for layer in layers if self.network.carried_by_attention(layer)]

    def _skips_below(self, probe: Probe) -> list[int]:
        """List the layers whose skip paths write what a probe reads."""
        end = probe.layer + (probe.reading.value > Reading.MID.value)
        layers = range(first_block(self.cut, MLP), end)
        return [layer for layer in layers if layer in self.network.skips]

    def _through_heads(self, probe: Probe, layer: int) -> Tensor:
        """What reaches the target through each head and key of a layer, `(n_heads, n_key)`."""
        frozen = self.network.operators.layers[layer]
        mixed, scale = self._into_heads(probe, frozen)  # (n_readouts, n_heads, d_head)
        if layer not in self._values:
            change = value_change(frozen, self.routed.at(layer, Reading.PRE))  # (n_kv_heads, n_key, d_head)
            self._values[layer] = change.repeat_interleave(frozen.block.attention.group, 0)
        summed = torch.tensordot(scale, mixed, 1)  # (n_heads, d_head)
        read = (self._values[layer] @ summed[:, :, None])[:, :, 0]
        return read * frozen.pattern[:, probe.position]

    @staticmethod
    def _hop(layer: FrozenLayer, probe: Probe, head: int, key: int) -> Hop:
        return Hop(
            kind=HopKind.HEAD,
            layer=layer.block.layer,
            head=head,
            key=key,
            query=probe.position,
            pattern=float(layer.pattern[head, probe.position, key]),
        )

    @staticmethod
    def _into_heads(probe: Probe, layer: FrozenLayer) -> tuple[Tensor, Tensor]:
        directions, scale = probe.directions, probe.scale
        post = layer.attention_post_norm
        if post is not None:
            directions, scale = post.fold(directions), scale * post.scale[probe.position]
        W_O = layer.block.attention.W_O.to(directions.dtype)
        return (directions @ W_O.flatten(1)).unflatten(1, W_O.shape[1:]), scale

    def below(self, probe: Probe, hop: Hop) -> Probe:
        """Carry a probe down a hop."""
        if hop.kind is HopKind.SKIP:
            return self._below_skip(probe, hop.layer)
        layer = self.network.operators.layers[hop.layer]
        mixed, scale = self._into_heads(probe, layer)
        attention, norm = layer.block.attention, layer.attention_norm
        W_V = attention.W_V[hop.head // attention.group].to(mixed.dtype)
        return Probe(
            layer=hop.layer,
            reading=Reading.PRE,
            position=hop.key,
            directions=norm.fold(mixed[:, hop.head] @ W_V),
            scale=scale * hop.pattern * norm.scale[hop.key],
            hops=(*probe.hops, hop),
        )

    def _below_skip(self, probe: Probe, number: int) -> Probe:
        layer = self.network.operators.layers[number]
        matrix = self.network.skips[number].to(probe.directions.dtype)
        hop = Hop(
            kind=HopKind.SKIP, layer=number, head=-1, key=probe.position, query=probe.position, pattern=1.0
        )
        return Probe(
            layer=number,
            reading=Reading.MID,
            position=probe.position,
            directions=layer.mlp_norm.fold(probe.directions @ matrix),
            scale=probe.scale * layer.mlp_norm.scale[probe.position],
            hops=(*probe.hops, hop),
        )

    def strongest(self, wanted: int) -> list[FoundPath]:
        """Follow the heaviest hops first; return up to `wanted` whole paths, heaviest first."""
        order, found = count(), []
        waiting: list[tuple[float, int, Probe, Hop | None]] = [
            (-abs(self.total), next(order), self.target, None)
        ]
        for _ in range(max(_FEWEST_EXPANDED, _EXPANDED * wanted)):
            if not waiting:
                break
            _, _, above, taken = heapq.heappop(waiting)
            probe = above if taken is None else self.below(above, taken)
            weight = self.direct(probe)
            if weight:
                found.append(self._path(probe, weight))
            for hop, through in self.hops(probe, _CHILDREN):
                if through:
                    heapq.heappush(waiting, (-abs(through), next(order), probe, hop))
        return sorted(found, key=lambda path: -abs(path.weight))[:wanted]

    def _path(self, probe: Probe, weight: float) -> FoundPath:
        written = self.straight.at(probe.layer, probe.reading)[probe.position]
        return FoundPath(probe=probe, weight=weight, parts=tuple((probe.directions @ written).tolist()))


def _heaviest(
    layers: Sequence[int], weights: Sequence[Tensor], most: int
) -> Iterator[tuple[int, int, int, float]]:
    """Yield layer, head, key and weight of the largest of all, `(n_heads, n_key)` by layer; no zeros."""
    if not weights or not most:
        return
    flat = torch.stack(list(weights))  # (n_layers, n_heads, n_key)
    size = min(most, flat.numel())
    places = flat.abs().flatten().topk(size).indices
    values = flat.flatten()[places].tolist()
    columns = torch.unravel_index(places, flat.shape)
    for number, head, key, weight in zip(*(column.tolist() for column in columns), values, strict=True):
        if weight:
            yield layers[number], head, key, weight
