"""Edges between the nodes of a circuit: what a source's patch does through one target and nothing between.

Marks et al. 2025: grad_d m * grad_u d (everything between stopped) * (u_patch - u_clean), summed over rows,
mean over contexts. Between are all MLPs: they are nodes or error terms. Attention follows exactly.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trephine.domain.commands import Progress
from trephine.domain.dataset_circuits import DatasetEdge, NodeAblation
from trephine.domain.sites import Site, SiteKind
from trephine.engine.dataset_circuits.averaging import patched
from trephine.engine.dataset_circuits.estimators import PatchedPack, node_gradients
from trephine.engine.dataset_circuits.nodes import Features, node_layer
from trephine.engine.dataset_circuits.packs import Pack
from trephine.engine.dataset_circuits.patches import States
from trephine.engine.dataset_circuits.space import NodeSpace
from trephine.engine.dataset_circuits.sweeping import Gradient, metric_cotangent
from trephine.engine.hosted import HostedModel
from trephine.engine.operators import FrozenOperators

METRIC = -1


def has_edges(space: NodeSpace) -> bool:
    """True if nodes read an MLP's input and write MLP outputs: neurons and transcoders."""
    return space.is_neurons or all(
        info.site_in.kind is SiteKind.MLP_IN and {site.kind for site in info.sites_out} == {SiteKind.MLP_OUT}
        for info in space.infos
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
        weights[METRIC] += _descend(run, space, sources, _from_metric(run), len(run.operators.layers))
        yield None
        for group in sources:
            for k, target in enumerate(group.numbers.tolist()):
                adjoint = _from_node(hosted, space, run, group, k, gradients[group.place])
                weights[target] += _descend(run, space, sources, adjoint, space.layers[group.place])
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
        (site,) = layer.outputs
        down = hosted.architecture.blocks[space.layers[place]].mlp.W_down
        return {site: down[:, index.to(down.device)].T}


def _from_metric(run: PatchedPack) -> Tensor:
    cotangent = metric_cotangent(run.pack, run.operators)
    return run.operators.final_norm.pull_back_live(cotangent)


def _from_node(
    hosted: HostedModel, space: NodeSpace, run: PatchedPack, group: _Sources, k: int, gradient: Tensor
) -> Tensor:
    """Return the adjoint of the stream before the target's block, weighted with the metric's gradient."""
    number, index = space.layers[group.place], int(group.index[k])
    rows = _rows_of(run.pack, int(group.position[k]))
    cotangent = torch.zeros_like(gradient)
    cotangent[rows, index] = gradient[rows, index]
    block = run.operators.layers[number]
    with node_layer(hosted, space, group.place) as layer, torch.inference_mode():
        read = layer.seed(run.operators, cotangent)
    adjoint = block.mlp_norm.pull_back_live(read)
    return adjoint if block.block.parallel else adjoint + Gradient().through_attention(block, adjoint)


def _rows_of(pack: Pack, position: int) -> Tensor:
    at = pack.clean.position
    return (at >= 1) if position < 0 else at == position


def _descend(
    run: PatchedPack, space: NodeSpace, sources: Sequence[_Sources], adjoint: Tensor, below: int
) -> Tensor:
    """Collect what sources in layers below bring, attention live and MLPs stopped: `(n_nodes,)`."""
    found = torch.zeros(sum(len(group.numbers) for group in sources))
    lowest = min(space.layers)
    for layer in reversed(run.operators.layers[lowest:below]):
        for group in sources:
            for site, directions in group.directions.items():
                if site.layer == layer.block.layer:
                    found[group.numbers] += _brought(run, space, group, site, directions, adjoint)
        adjoint = adjoint + Gradient().through_attention(layer, adjoint)
    return found


def _brought(
    run: PatchedPack, space: NodeSpace, group: _Sources, site: Site, directions: Tensor, adjoint: Tensor
) -> Tensor:
    operators: FrozenOperators = run.operators
    post = operators.layers[site.layer].mlp_post_norm
    if site.kind is SiteKind.NEURONS and post is not None:
        adjoint = post.pull_back_live(adjoint)
    through = adjoint @ directions.to(adjoint.dtype).T  # (n_rows, n)
    difference = run.difference(group.place)[:, group.index.to(adjoint.device)]
    at = run.pack.clean.position[:, None]
    position = group.position.to(at.device)
    chosen = torch.where(position < 0, at >= 1, at == position)
    return (through * difference * chosen).sum(0).float().cpu()


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
