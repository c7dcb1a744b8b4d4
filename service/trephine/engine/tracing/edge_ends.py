"""An edge of a stored circuit on its prompt: what is written, and everything that its ends are made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trephine.domain.arrays import Array
from trephine.domain.circuits import Circuit, Node, NodeKind
from trephine.domain.error_sites import error_site
from trephine.domain.sites import NEURONS, Site, SiteKind
from trephine.engine.attribution.operators import FrozenOperators
from trephine.engine.features.deembedding import excitations
from trephine.engine.graphs.actives import ActiveFeatures
from trephine.engine.graphs.edge_paths import Probe
from trephine.engine.graphs.tangents import FrozenNetwork, Tangent, tangent
from trephine.engine.models.architecture import Norm
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.lens import Ends, extreme_tokens
from trephine.engine.models.neurons import decoders as neuron_decoders
from trephine.engine.replacements.sets import opened
from trephine.engine.tracing.edge_targets import EdgeTarget, EdgeTargets, active_cell


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSource:
    """What a unit of a source writes, how many units there are, and whether weights alone decide the unit."""

    writes: dict[Site, Tensor]
    position: int
    amount: float
    invariant: bool


class EdgeWork:
    """A circuit's prompt, with everything that its edges are made of."""

    def __init__(
        self,
        hosted: HostedModel,
        circuit: Circuit,
        operators: FrozenOperators,
        active: ActiveFeatures | None,
    ) -> None:
        self.hosted, self.circuit, self.operators, self.active = hosted, circuit, operators, active
        self.targets = EdgeTargets(hosted, circuit, operators, active)
        with torch.inference_mode():
            self.network = FrozenNetwork(operators=operators, held=self._held(), skips=self._skips())

    @cached_property
    def stored(self) -> dict[tuple[int, int], float]:
        """The circuit's own edges."""
        edges = self.circuit.edges
        columns = (_numbers(edges.source), _numbers(edges.target), _numbers(edges.weight))
        return {(source, target): weight for source, target, weight in zip(*columns, strict=True)}

    def _held(self) -> frozenset[Site]:
        if self.active is None:
            return frozenset()
        return frozenset(site for site in self.active.errors if site.kind is not SiteKind.MLP_OUT)

    def _skips(self) -> dict[int, Tensor]:
        found = {}
        for layer in () if self.active is None else self.active.layers:
            if layer.info.has_skip:
                with opened(self.hosted, layer.ref.replacement, [layer.ref.layer]) as resident:
                    matrix = resident[layer.ref.layer].skip_matrix()
                if matrix is not None:
                    found[layer.info.layer] = matrix
        return found

    # --- sources ------------------------------------------------------------------------------------

    def sent(self, node: int) -> tuple[EdgeSource, Tangent, Tangent]:
        """A source, and what a unit of it does to the stream: along all paths, and along the stream alone."""
        source = self._source(self.circuit.nodes[node])
        token = self.circuit.nodes[node].kind is NodeKind.TOKEN
        routed, straight = (
            tangent(self.network, source.writes, source.position, routed=routed, token=token)
            for routed in (True, False)
        )
        return source, routed, straight

    def _source(self, node: Node) -> EdgeSource:
        position = node.position
        if node.kind is NodeKind.TOKEN:
            site = Site(kind=SiteKind.EMBED, layer=0)
            writes = {site: self.operators.embedding[position]}
            return EdgeSource(writes=writes, position=position, amount=1.0, invariant=True)
        if node.kind is NodeKind.ERROR:
            return EdgeSource(writes=self._error(node), position=position, amount=1.0, invariant=False)
        if self.active is None or node.replacement == NEURONS:
            return self._neuron(node)
        return self._feature(node, self.active)

    def _error(self, node: Node) -> dict[Site, Tensor]:
        if self.active is None:  # an MLP that is not opened, as a whole
            site = Site(kind=SiteKind.MLP_OUT, layer=node.layer)
            return {site: self.operators.layers[node.layer].mlp_out[node.position]}
        site = Site(kind=error_site(node) or SiteKind.MLP_OUT, layer=node.layer)
        return {site: self.active.errors[site][node.position]}

    def _neuron(self, node: Node) -> EdgeSource:
        layer = self.operators.layers[node.layer]
        amount = float(layer.activation[node.position, node.feature])
        if layer.mlp_post_norm is not None:
            amount *= float(layer.mlp_post_norm.scale[node.position, 0])
        decoder = neuron_decoders(self.hosted.architecture, node.layer, [node.feature])[0]
        site = Site(kind=SiteKind.MLP_OUT, layer=node.layer)
        writes = {site: decoder.to(self.operators.dtype)}
        return EdgeSource(writes=writes, position=node.position, amount=amount, invariant=True)

    def _feature(self, node: Node, active: ActiveFeatures) -> EdgeSource:
        layer, cell = active_cell(active, node)
        with opened(self.hosted, node.replacement, [node.layer]) as resident:
            found = resident[node.layer]
            writes = {
                site: found.decoders([node.feature], site)[0].to(self.operators.dtype)
                for site in layer.info.sites_out
            }
        amount = float(layer.written[cell])
        return EdgeSource(writes=writes, position=node.position, amount=amount, invariant=True)

    # --- tokens ---------------------------------------------------------------------------------------

    def read_tokens(self, probe: Probe, target: EdgeTarget, count: int) -> Ends:
        """De-embedding at the beginning of a path into a target."""
        shares = probe.scale / probe.scale.abs().sum().clamp_min(torch.finfo(probe.scale.dtype).tiny)
        direction = shares @ probe.directions
        scores = excitations(self.hosted.architecture, direction, self._norm_of(probe, target))
        return extreme_tokens(self.hosted, scores[None], count)[0]

    def _norm_of(self, probe: Probe, target: EdgeTarget) -> Norm | None:
        """The norm that reads the stream where a path begins; None for dictionaries on the stream."""
        if not probe.hops:
            return target.norm
        block = self.hosted.architecture.blocks[probe.layer]
        return block.attention_norm if probe.hops[-1].head >= 0 else block.mlp_norm


def _numbers(column: Array) -> list[Any]:
    numbers: list[Any] = np.frombuffer(column.data, dtype=column.dtype).tolist()
    return numbers
