"""What reads at the upper end of an edge: a feature, a neuron, or whatever a circuit explains."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from trephine.domain.circuits import Circuit, Node, NodeKind
from trephine.domain.errors import InvalidRequestError
from trephine.domain.sites import NEURONS, LayerRef, Site, SiteKind
from trephine.domain.targets import AttentionScore, DirectionValue, FeatureValue, TargetKind
from trephine.engine.attribution.operators import FrozenOperators
from trephine.engine.attribution.places import EMBEDDING, place_of
from trephine.engine.attribution.readouts import half_rule, logit_readout
from trephine.engine.attribution.targets import top_place
from trephine.engine.graphs.actives import ActiveFeatures, ActiveLayer
from trephine.engine.graphs.edge_paths import Probe
from trephine.engine.graphs.linearised import is_linearised, read_place, through_mlp
from trephine.engine.graphs.tangents import Reading
from trephine.engine.graphs.target_attention import score_target
from trephine.engine.models.architecture import Norm
from trephine.engine.models.hosted import HostedModel
from trephine.engine.replacements.sets import opened

_READINGS = {
    SiteKind.EMBED: Reading.EMBEDDING,
    SiteKind.RESID_MID: Reading.MID_BEFORE_CUT,
    SiteKind.MLP_IN: Reading.MID,
    SiteKind.MLP_OUT: Reading.MID,
    SiteKind.RESID_POST: Reading.POST_BEFORE_CUT,
    SiteKind.ATTN_OUT: Reading.PRE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeTarget:
    """A target's probe, the names of its read-outs, and where its stretch of the stream begins."""

    probe: Probe
    readouts: tuple[str, ...]
    cut: int
    estimated: bool
    norm: Norm | None = None
    """The norm between stream and target; None: the stream is read as it is."""
    by_prompt: bool = False
    """True if the read-out is not the weights' alone: an MLP's coefficients on this prompt are in it, or what
    the other side of an attention score reads. It has no invariant factor then."""


class EdgeTargets:
    """Upper ends of a circuit's edges."""

    def __init__(
        self,
        hosted: HostedModel,
        circuit: Circuit,
        operators: FrozenOperators,
        active: ActiveFeatures | None,
    ) -> None:
        self.hosted, self.circuit, self.operators, self.active = hosted, circuit, operators, active

    def of(self, node: int) -> tuple[EdgeTarget, ...]:
        """The probe of a feature, a neuron or a target; of an attention score one a side, which add up.

        Raises:
            UnsupportedOptionError: If what the circuit explains is not known.
        """
        found = self.circuit.nodes[node]
        if found.kind is NodeKind.LOGIT:
            return self._explained(node)
        if self.active is None or found.replacement == NEURONS:
            return (self._neuron(found.layer, found.feature, found.position),)
        layer, _ = active_cell(self.active, found)
        return (self._feature(layer, found.feature, found.position),)

    def _explained(self, node: int) -> tuple[EdgeTarget, ...]:
        explained = [n for n, each in enumerate(self.circuit.nodes) if each.kind is NodeKind.LOGIT]
        target = self.circuit.targets[explained.index(node)]
        if target.kind is TargetKind.LOGIT and target.token is not None:
            against = None if target.against is None else target.against.id
            return (self._logit(target.token.id, against, target.position),)
        match self.circuit.question():
            case FeatureValue() as wanted:
                return (self._feature_value(wanted, target.position),)
            case DirectionValue() as wanted:
                return (self._direction(wanted, target.position),)
            case AttentionScore() as wanted:
                return self._score(wanted, target.position)
            case other:
                raise TypeError(f"{type(other).__name__} explains logits")

    def _logit(self, token: int, against: int | None, position: int) -> EdgeTarget:
        operators, norm = self.operators, self.operators.final_norm
        direction = logit_readout(self.hosted, token, against).direction
        probe = Probe(
            layer=len(operators.layers) - 1,
            reading=Reading.POST,
            position=position,
            directions=norm.fold(direction.to(operators.device, operators.dtype)[None]),
            scale=norm.scale[position],
        )
        framed = self._framed(probe, ("logit",), top_place(operators), estimated=False)
        return replace(framed, norm=operators.architecture.final_norm)

    def _neuron(self, number: int, neuron: int, position: int) -> EdgeTarget:
        layer, mlp = self.operators.layers[number], self.operators.layers[number].block.mlp
        here, index = torch.tensor([position]), torch.tensor([neuron])
        by_gate, by_read = half_rule(layer, here, index)
        rows, coefficients, names = [mlp.W_in[neuron]], [by_read], ["read"]
        if mlp.W_gate is not None and by_gate is not None:
            rows, coefficients, names = (
                [mlp.W_gate[neuron], *rows],
                [by_gate, *coefficients],
                ["gate", *names],
            )
        directions = torch.stack(rows).to(self.operators.dtype)
        norm = layer.mlp_norm
        probe = Probe(
            layer=number,
            reading=Reading.MID,
            position=position,
            directions=norm.fold(directions),
            scale=torch.cat(coefficients) * norm.scale[position],
        )
        place = place_of(Site(kind=SiteKind.MLP_IN, layer=number))
        framed = self._framed(probe, tuple(names), place, estimated=True)
        return replace(framed, norm=layer.block.mlp_norm)

    def _feature(self, layer: ActiveLayer, feature: int, position: int) -> EdgeTarget:
        site, dtype = layer.info.site_in, self.operators.dtype
        below = self.operators.layers[site.layer]
        behind_norm = site.kind in (SiteKind.MLP_IN, SiteKind.MLP_OUT)
        with opened(self.hosted, layer.ref.replacement, [layer.ref.layer]) as resident:
            direction = resident[layer.ref.layer].encoders([feature]).to(dtype)
        scale = 1 / layer.read_scale[[position]].to(dtype)
        at = torch.tensor([position], device=direction.device)
        if is_linearised(layer.info):
            direction, _ = through_mlp(below, direction, at)
        if behind_norm:
            norm = below.mlp_norm
            direction, scale = norm.fold(direction), scale * norm.scale[position]
        block, reading = _met(site)
        probe = Probe(
            layer=block,
            reading=reading,
            position=position,
            directions=direction,
            scale=scale,
            only_heads_of=site.layer if site.kind is SiteKind.ATTN_OUT else None,
        )
        estimated = is_linearised(layer.info)
        readout = "encoder through the linearised MLP" if estimated else "encoder"
        framed = self._framed(probe, (readout,), read_place(layer.info), estimated=estimated)
        return replace(framed, by_prompt=estimated, norm=below.block.mlp_norm if behind_norm else None)

    def _feature_value(self, wanted: FeatureValue, position: int) -> EdgeTarget:
        ref = LayerRef(replacement=wanted.replacement or self.circuit.replacement, layer=wanted.layer)
        layer = None if self.active is None or ref.replacement == NEURONS else self.active.layer_of(ref)
        if layer is None:
            return self._neuron(wanted.layer, wanted.index, position)
        return self._feature(layer, wanted.index, position)

    def _direction(self, wanted: DirectionValue, position: int) -> EdgeTarget:
        operators, site = self.operators, wanted.site
        vector = torch.tensor([wanted.vector], dtype=operators.dtype, device=operators.device)
        block, reading = _met(site)
        probe = Probe(
            layer=block,
            reading=reading,
            position=position,
            directions=vector,
            scale=torch.ones_like(vector[:, 0]),
        )
        return self._framed(probe, ("direction",), place_of(site), estimated=False)

    def _score(self, wanted: AttentionScore, query: int) -> tuple[EdgeTarget, ...]:
        """Half of a score by what the query reads, half by what the key does, both above a dictionary."""
        layer = self.operators.layers[wanted.layer]
        sides = []
        for name, part in zip(
            ("query", "key"), score_target(self.operators, wanted, query, 1.0).parts, strict=True
        ):
            scale = layer.attention_norm.scale[part.position]
            probe = Probe(
                layer=wanted.layer,
                reading=Reading.PRE,
                position=part.position,
                directions=part.adjoint[None] / scale,
                scale=scale,
            )
            framed = self._framed(probe, (name,), part.place, estimated=True)
            sides.append(replace(framed, by_prompt=True, norm=layer.block.attention_norm))
        return tuple(sides)

    def _framed(self, probe: Probe, readouts: tuple[str, ...], place: int, *, estimated: bool) -> EdgeTarget:
        cuts = () if self.active is None else self.active.cuts
        cut = max((cut for cut in cuts if cut < place), default=EMBEDDING - 1)
        return EdgeTarget(probe=probe, readouts=readouts, cut=cut, estimated=estimated)


def _met(site: Site) -> tuple[int, Reading]:
    """Return the block and reading at which a site is met, below a dictionary there, whatever its name."""
    if site.kind is not SiteKind.RESID_PRE:
        return site.layer, _READINGS[site.kind]
    return (site.layer - 1, Reading.POST_BEFORE_CUT) if site.layer else (0, Reading.EMBEDDING)


def active_cell(active: ActiveFeatures, node: Node) -> tuple[ActiveLayer, int]:
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
