"""Both ends of an edge of a stored circuit on its prompt: what is written, and what reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trephine.domain.arrays import Array
from trephine.domain.circuits import Circuit, Node, NodeKind
from trephine.domain.error_sites import error_site
from trephine.domain.errors import InvalidRequestError, UnsupportedOptionError
from trephine.domain.sites import NEURONS, LayerRef, Site, SiteKind
from trephine.engine.attribution.operators import FrozenOperators
from trephine.engine.attribution.places import EMBEDDING, place_of
from trephine.engine.attribution.readouts import half_rule, logit_readout
from trephine.engine.features.deembedding import excitations
from trephine.engine.graphs.actives import ActiveFeatures, ActiveLayer
from trephine.engine.graphs.edge_paths import Probe
from trephine.engine.graphs.linearised import is_linearised, read_place, through_mlp
from trephine.engine.graphs.tangents import FrozenNetwork, Reading, Tangent, tangent
from trephine.engine.models.architecture import Norm
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.lens import Ends, extreme_tokens
from trephine.engine.models.neurons import decoders as neuron_decoders
from trephine.engine.replacements.sets import opened

_READINGS = {
    SiteKind.EMBED: Reading.BEFORE_CUT,
    SiteKind.RESID_PRE: Reading.BEFORE_CUT,
    SiteKind.RESID_MID: Reading.MID_BEFORE_CUT,
    SiteKind.MLP_IN: Reading.MID,
    SiteKind.MLP_OUT: Reading.MID,
    SiteKind.RESID_POST: Reading.POST_BEFORE_CUT,
    SiteKind.ATTN_OUT: Reading.PRE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSource:
    """What a unit of a source writes, how many units there are, and whether weights alone decide the unit."""

    writes: dict[Site, Tensor]
    position: int
    amount: float
    invariant: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeTarget:
    """A target's probe, the names of its read-outs, and where its stretch of the stream begins."""

    probe: Probe
    readouts: tuple[str, ...]
    cut: int
    estimated: bool
    linearised: bool = False
    """True if an MLP's coefficients on this prompt are in the read-out: it has no invariant factor then."""


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
        routed, straight = (
            tangent(self.network, source.writes, source.position, routed=routed) for routed in (True, False)
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
        layer, cell = _cell(active, node)
        with opened(self.hosted, node.replacement, [node.layer]) as resident:
            found = resident[node.layer]
            writes = {
                site: found.decoders([node.feature], site)[0].to(self.operators.dtype)
                for site in layer.info.sites_out
            }
        amount = float(layer.written[cell])
        return EdgeSource(writes=writes, position=node.position, amount=amount, invariant=True)

    # --- targets ------------------------------------------------------------------------------------

    def target(self, node: int) -> EdgeTarget:
        """The probe of a logit, a neuron or a feature."""
        found = self.circuit.nodes[node]
        if found.kind is NodeKind.LOGIT:
            return self._logit(node)
        if self.active is None or found.replacement == NEURONS:
            return self._neuron_target(found)
        return self._feature_target(found, self.active)

    def _logit(self, node: int) -> EdgeTarget:
        operators = self.operators
        logits = [n for n, each in enumerate(self.circuit.nodes) if each.kind is NodeKind.LOGIT]
        target = self.circuit.targets[logits.index(node)]
        if target.token is None:
            raise UnsupportedOptionError(
                f"the target is no logit but {target.label}; explain edges into features", field="edges"
            )
        against = None if target.against is None else target.against.id
        direction = logit_readout(self.hosted, target.token.id, against).direction
        norm, last = operators.final_norm, target.position
        probe = Probe(
            layer=len(operators.layers) - 1,
            reading=Reading.POST,
            position=last,
            directions=norm.fold(direction.to(operators.device, operators.dtype)[None]),
            scale=norm.scale[last],
        )
        return self._framed(probe, ("logit",), 4 * len(operators.layers), estimated=False)

    def _neuron_target(self, node: Node) -> EdgeTarget:
        layer, mlp = self.operators.layers[node.layer], self.operators.layers[node.layer].block.mlp
        here, index = torch.tensor([node.position]), torch.tensor([node.feature])
        by_gate, by_read = half_rule(layer, here, index)
        rows, coefficients, names = [mlp.W_in[node.feature]], [by_read], ["read"]
        if mlp.W_gate is not None and by_gate is not None:
            rows, coefficients, names = (
                [mlp.W_gate[node.feature], *rows],
                [by_gate, *coefficients],
                ["gate", *names],
            )
        directions = torch.stack(rows).to(self.operators.dtype)
        norm = layer.mlp_norm
        probe = Probe(
            layer=node.layer,
            reading=Reading.MID,
            position=node.position,
            directions=norm.fold(directions),
            scale=torch.cat(coefficients) * norm.scale[node.position],
        )
        place = place_of(Site(kind=SiteKind.MLP_IN, layer=node.layer))
        return self._framed(probe, tuple(names), place, estimated=True)

    def _feature_target(self, node: Node, active: ActiveFeatures) -> EdgeTarget:
        layer, _ = _cell(active, node)
        site, dtype = layer.info.site_in, self.operators.dtype
        with opened(self.hosted, node.replacement, [node.layer]) as resident:
            direction = resident[node.layer].encoders([node.feature]).to(dtype)
        scale = 1 / layer.read_scale[[node.position]].to(dtype)
        at = torch.tensor([node.position], device=direction.device)
        if is_linearised(layer.info):
            direction, _ = through_mlp(self.operators.layers[site.layer], direction, at)
        if site.kind in (SiteKind.MLP_IN, SiteKind.MLP_OUT):
            norm = self.operators.layers[site.layer].mlp_norm
            direction, scale = norm.fold(direction), scale * norm.scale[node.position]
        probe = Probe(
            layer=site.layer,
            reading=_READINGS[site.kind],
            position=node.position,
            directions=direction,
            scale=scale,
            only_heads_of=site.layer if site.kind is SiteKind.ATTN_OUT else None,
        )
        estimated = is_linearised(layer.info)
        readout = "encoder through the linearised MLP" if estimated else "encoder"
        framed = self._framed(probe, (readout,), read_place(layer.info), estimated=estimated)
        return replace(framed, linearised=estimated)

    def _framed(self, probe: Probe, readouts: tuple[str, ...], place: int, *, estimated: bool) -> EdgeTarget:
        cuts = () if self.active is None else self.active.cuts
        cut = max((cut for cut in cuts if cut < place), default=EMBEDDING - 1)
        return EdgeTarget(probe=probe, readouts=readouts, cut=cut, estimated=estimated)

    # --- tokens ---------------------------------------------------------------------------------------

    def read_tokens(self, probe: Probe, count: int) -> Ends:
        """De-embedding at the beginning of a path."""
        shares = probe.scale / probe.scale.abs().sum().clamp_min(torch.finfo(probe.scale.dtype).tiny)
        direction = shares @ probe.directions
        scores = excitations(self.hosted.architecture, direction, self._norm_of(probe))
        return extreme_tokens(self.hosted, scores[None], count)[0]

    def _norm_of(self, probe: Probe) -> Norm | None:
        """The norm that reads the stream where a path begins; None for dictionaries on the stream."""
        architecture = self.hosted.architecture
        block = architecture.blocks[probe.layer]
        if probe.hops:
            head = probe.hops[-1].head >= 0
            return block.attention_norm if head else block.mlp_norm
        by_reading = {Reading.MID: block.mlp_norm, Reading.POST: architecture.final_norm}
        return by_reading.get(probe.reading)


def _cell(active: ActiveFeatures, node: Node) -> tuple[ActiveLayer, int]:
    """Find a feature node among the active features: its layer, and its place in it."""
    layer = active.layer_of(LayerRef(replacement=node.replacement, layer=node.layer))
    if layer is not None:
        here = (layer.position == node.position) & (layer.index == node.feature)
        if here.any():
            return layer, int(here.nonzero()[0, 0])
    raise InvalidRequestError(
        f"feature {node.layer}:{node.feature} is not active at position {node.position} any more: the loaded "
        "set is another one than the circuit was found with",
        field="edges",
    )


def _numbers(column: Array) -> list[Any]:
    numbers: list[Any] = np.frombuffer(column.data, dtype=column.dtype).tolist()
    return numbers
