"""Edges between the nodes of a circuit: what a source's patch does through one target and nothing between.

Marks et al. 2025: grad_d m * grad_u d (everything between stopped) * (u_patch - u_clean), summed over rows,
mean over contexts. Between are the MLPs and the attention of layers where they have nodes, which stop, error
terms included. What has no nodes is part of the model and follows exactly, queries and keys included.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.dataset_circuits import DatasetEdge, NodeAblation
from trephine.domain.sites import Site, SiteKind
from trephine.engine.attribution.live import by_heads, live_attention_adjoint, live_mlp_adjoint
from trephine.engine.attribution.operators import FrozenLayer
from trephine.engine.dataset_circuits.averaging import patched
from trephine.engine.dataset_circuits.estimators import PatchedPack, node_gradients
from trephine.engine.dataset_circuits.nodes import Features, Neurons, node_layer
from trephine.engine.dataset_circuits.packs import Pack
from trephine.engine.dataset_circuits.patches import States
from trephine.engine.dataset_circuits.places import NodeKind, Place
from trephine.engine.dataset_circuits.space import FIRST, NodeSpace
from trephine.engine.dataset_circuits.sweeping import Gradient, metric_cotangent
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.products import product

METRIC = -1
Scales = Mapping[int, Tensor | float]
"""By place of features, what denormalisation multiplies their outputs with in the clean run."""

_OF_MLP = {SiteKind.NEURONS, SiteKind.MLP_OUT}
_OF_ATTENTION = {SiteKind.ATTN_Z, SiteKind.ATTN_OUT}
_BEFORE_BLOCK = {SiteKind.ATTN_Z, SiteKind.RESID_PRE, SiteKind.EMBED}
"""Where nodes read the stream before their block; heads through values, queries and keys."""


def has_edges(space: NodeSpace) -> bool:
    """True if nodes are neurons, heads, transcoders or SAEs of attention outputs: none cuts the stream."""
    return all(
        {site.kind for site in place.outputs} <= _OF_MLP | _OF_ATTENTION
        and place.source.kind is not SiteKind.MLP_OUT
        for place in space.places
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sources:
    """Kept nodes of one layer."""

    place: int
    numbers: Tensor
    """int64 `(n,)`, numbers within the circuit."""
    position: Tensor
    """int64 `(n,)`, -1 for all."""
    index: Tensor
    """int64 `(n,)`."""
    directions: dict[Site, Tensor]
    """`(n, d_model)`, what a unit of activation writes at an output site."""


def find_edges(
    hosted: HostedModel,
    space: NodeSpace,
    packed: Sequence[Pack],
    nodes: Tensor,
    *,
    patch: NodeAblation,
    means: States,
    stage: str,
) -> Generator[Progress | None, None, tuple[DatasetEdge, ...]]:
    """Find all edges between `nodes (n,)` and into the metric, heaviest first; one target a quantum."""
    sources = _sources(hosted, space, nodes)
    weights = torch.zeros(len(nodes) + 1, len(nodes))  # (target, source); the last row is the metric
    for number, pack in enumerate(packed):
        yield Progress(stage=stage, done=number, total=len(packed))
        run = patched(hosted, space, pack, patch, means)
        gradients = yield from node_gradients(hosted, space, run, Gradient())
        scales = _scales(hosted, space, run, sources)
        weights[METRIC] += _Descent(run, space, sources, scales).from_metric()
        yield None
        for group in sources:
            for k, target in enumerate(group.numbers.tolist()):
                read = _read_by(hosted, space, run, group, k, gradients[group.place])
                descent = _Descent(run, space, sources, scales)
                weights[target] += descent.from_node(space.places[group.place], read)
                yield None
    return _listed(weights / max(1, sum(pack.count for pack in packed)))


def _sources(hosted: HostedModel, space: NodeSpace, nodes: Tensor) -> list[_Sources]:
    places, positions, indices = space.split(nodes)
    found = []
    for place in places.unique().tolist():
        numbers = (places == place).nonzero()[:, 0]
        found.append(
            _Sources(
                place=place,
                numbers=numbers,
                position=positions[numbers],
                index=indices[numbers],
                directions=_directions(hosted, space, place, indices[numbers]),
            )
        )
    return found


def _directions(hosted: HostedModel, space: NodeSpace, place: int, index: Tensor) -> dict[Site, Tensor]:
    with node_layer(hosted, space, place) as layer, torch.inference_mode():
        if isinstance(layer, Features):
            return {site: layer.layer.decoders(index.tolist(), site) for site in layer.outputs}
        if isinstance(layer, Neurons):
            down = hosted.architecture.blocks[space.layers[place]].mlp.W_down
            return {site: down[:, index.to(down.device)].T for site in layer.outputs}
    return {}


def _scales(hosted: HostedModel, space: NodeSpace, run: PatchedPack, sources: Sequence[_Sources]) -> Scales:
    found = {}
    for group in sources:
        with node_layer(hosted, space, group.place) as layer, torch.inference_mode():
            if isinstance(layer, Features):
                found[group.place] = layer.encode(run.operators).scale_out
    return found


def _read_by(
    hosted: HostedModel, space: NodeSpace, run: PatchedPack, group: _Sources, k: int, gradient: Tensor
) -> Tensor:
    """Carry the metric's gradient at one node to what it reads, `(n_rows, d)`."""
    unit = space.places[group.place].unit
    columns = slice(int(group.index[k]) * unit, (int(group.index[k]) + 1) * unit)
    rows = _rows_of(run.pack, int(group.position[k]))
    cotangent = torch.zeros_like(gradient)
    cotangent[rows, columns] = gradient[rows, columns]
    with node_layer(hosted, space, group.place) as layer, torch.inference_mode():
        return layer.seed(run.operators, cotangent)


def _rows_of(pack: Pack, position: int) -> Tensor:
    at = pack.clean.position
    return (at >= FIRST) if position < 0 else at == position


class _Descent:
    """One adjoint's way down the stream: MLPs and attention stop in layers where they have nodes."""

    def __init__(
        self, run: PatchedPack, space: NodeSpace, sources: Sequence[_Sources], scales: Scales
    ) -> None:
        self._run, self._space, self._sources, self._scales = run, space, sources, scales
        self._found = torch.zeros(sum(len(group.numbers) for group in sources))  # (n_nodes,)
        self._stopped_mlps = _layers_written(space, _OF_MLP)
        self._stopped = _layers_written(space, _OF_ATTENTION)

    def from_metric(self) -> Tensor:
        """Return what every source brings to the metric directly."""
        operators = self._run.operators
        cotangent = metric_cotangent(self._run.pack, operators)
        return self._below(operators.final_norm.pull_back_live(cotangent), len(operators.layers))

    def from_node(self, place: Place, read: Tensor) -> Tensor:
        """Return what every source brings through a node; `read (n_rows, d)` is on what the node reads."""
        layer = self._run.operators.layers[place.layer]
        if place.kind is NodeKind.ERROR:
            return self._found
        if place.source.kind in _BEFORE_BLOCK:
            return self._below(read, place.layer)
        if place.source.kind is SiteKind.RESID_POST:
            return self._below(read, place.layer + 1)
        if place.source.kind is SiteKind.ATTN_OUT:
            return self._below(live_attention_adjoint(layer, read), place.layer)
        in_stream = place.source.kind is SiteKind.RESID_MID
        adjoint = read if in_stream else layer.mlp_norm.pull_back_live(read)
        if not layer.block.parallel:
            adjoint = adjoint + self._through_attention(layer, adjoint)
        return self._below(adjoint, place.layer)

    def _below(self, adjoint: Tensor, number: int) -> Tensor:
        lowest = min(self._space.layers)
        for layer in reversed(self._run.operators.layers[lowest:number]):
            self._collect(layer, adjoint, _OF_MLP)
            middle = adjoint + self._through_mlp(layer, adjoint)
            heard = adjoint if layer.block.parallel else middle
            adjoint = middle + self._through_attention(layer, heard)
        return self._found

    def _through_mlp(self, layer: FrozenLayer, adjoint: Tensor) -> Tensor:
        if layer.block.layer in self._stopped_mlps:
            return torch.zeros_like(adjoint)
        return live_mlp_adjoint(
            layer, product(_to_neurons(layer, adjoint), layer.block.mlp.W_down.to(adjoint.dtype))
        )

    def _through_attention(self, layer: FrozenLayer, adjoint: Tensor) -> Tensor:
        self._collect(layer, adjoint, _OF_ATTENTION)
        if layer.block.layer in self._stopped:
            return torch.zeros_like(adjoint)
        return live_attention_adjoint(layer, adjoint)

    def _collect(self, layer: FrozenLayer, adjoint: Tensor, kinds: set[SiteKind]) -> None:
        for group in self._sources:
            for site in self._space.places[group.place].outputs:
                if site.layer == layer.block.layer and site.kind in kinds:
                    self._found[group.numbers] += self._brought(group, site, layer, adjoint)

    def _brought(self, group: _Sources, site: Site, layer: FrozenLayer, adjoint: Tensor) -> Tensor:
        difference = self._run.difference(group.place)  # (n_rows, width * unit)
        index = group.index.to(adjoint.device)
        if site in group.directions:
            arriving = _to_neurons(layer, adjoint) if site.kind is SiteKind.NEURONS else adjoint
            through = arriving @ group.directions[site].to(adjoint.dtype).T
            written = difference[:, index] * self._scales.get(group.place, 1.0)
            brought = through * written  # (n_rows, n)
        else:
            by_mixed = by_heads(layer, adjoint) if site.kind is SiteKind.ATTN_Z else adjoint
            unit = self._space.places[group.place].unit
            brought = (by_mixed * difference).unflatten(-1, (-1, unit)).sum(-1)[:, index]
        at = self._run.pack.clean.position[:, None]
        position = group.position.to(at.device)
        chosen = torch.where(position < 0, at >= FIRST, at == position)
        return (brought * chosen).sum(0).float().cpu()


def _layers_written(space: NodeSpace, kinds: set[SiteKind]) -> frozenset[int]:
    return frozenset(site.layer for place in space.places for site in place.outputs if site.kind in kinds)


def _to_neurons(layer: FrozenLayer, adjoint: Tensor) -> Tensor:
    """Carry `(n_rows, d_model)` of what the MLP adds to what its down projection gives."""
    post = layer.mlp_post_norm
    return adjoint if post is None else post.pull_back_live(adjoint)


def _listed(weights: Tensor) -> tuple[DatasetEdge, ...]:
    targets, sources = weights.nonzero(as_tuple=True)
    last = len(weights) - 1
    order = weights[targets, sources].abs().argsort(descending=True, stable=True)
    return tuple(
        DatasetEdge(
            source=int(sources[k]),
            target=METRIC if int(targets[k]) == last else int(targets[k]),
            weight=float(weights[targets[k], sources[k]]),
        )
        for k in order.tolist()
    )
