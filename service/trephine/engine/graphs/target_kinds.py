"""From what was asked for to the read-outs of one prompt: logits, features, directions, attention scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from trephine.domain.ablation import LogitTarget
from trephine.domain.circuits import DiscoverCircuit
from trephine.domain.sites import NEURONS, LayerRef, Site, SiteKind
from trephine.domain.targets import (
    AttentionScore,
    DirectionValue,
    ExplainedTarget,
    FeatureValue,
    TargetKind,
    TokenLogits,
    TopLogits,
)
from trephine.engine.attribution.live import live_mlp_adjoint
from trephine.engine.attribution.operators import FrozenNorm, FrozenOperators
from trephine.engine.attribution.places import MLP, PER_BLOCK, clean_value, place_of
from trephine.engine.attribution.readouts import LogitReadout, logit_readout, neuron_targets
from trephine.engine.attribution.targets import (
    Explained,
    LogitGauge,
    ReadPart,
    SiteGauge,
    TargetReadout,
    top_place,
)
from trephine.engine.graphs.actives import ActiveFeatures, ActiveLayer
from trephine.engine.graphs.linearised import (
    is_linearised,
    live_output_adjoint,
    read_place,
    through_mlp,
)
from trephine.engine.graphs.target_attention import score_target
from trephine.engine.graphs.target_checks import asked_positions
from trephine.engine.graphs.targets import encoder_directions
from trephine.engine.models.hosted import HostedModel


class Asked(Protocol):
    """A validated request."""

    @property
    def command(self) -> DiscoverCircuit:
        """What was asked."""
        ...

    @property
    def ids(self) -> list[int]:
        """The prompt."""
        ...


def explained(
    hosted: HostedModel, operators: FrozenOperators, asked: Asked, active: ActiveFeatures | None = None
) -> Explained:
    """Read off a captured prompt what is asked for.

    Args:
        hosted: The model with its sets.
        operators: Its clean pass over the prompt.
        asked: The request, checked by `trephine.engine.graphs.target_checks`.
        active: The active features of the sets; None: the graph is over neurons.
    """
    positions = asked_positions(asked.command.positions, len(asked.ids))
    with torch.inference_mode():
        found = [
            target
            for position in positions
            for target in _at(hosted, operators, asked.command, active, position, 1 / len(positions))
        ]
    return Explained(targets=tuple(found), n_pos=operators.n_pos)


def _at(
    hosted: HostedModel,
    operators: FrozenOperators,
    command: DiscoverCircuit,
    active: ActiveFeatures | None,
    position: int,
    share: float,
) -> list[TargetReadout]:
    match command.target:
        case FeatureValue() as wanted:
            ref = LayerRef(replacement=wanted.replacement or command.replacement, layer=wanted.layer)
            layer = None if active is None or ref.replacement == NEURONS else active.layer_of(ref)
            if layer is None:
                return [_neuron(operators, wanted, position, share)]
            told = f"{ref.replacement}:" if len(command.sets) > 1 else ""
            label = f"feature {told}{wanted.layer}:{wanted.index} at position {position}"
            return [_feature(hosted, operators, layer, wanted.index, label, position, share)]
        case DirectionValue() as wanted:
            return [_direction(operators, wanted, position, share)]
        case AttentionScore() as wanted:
            return [score_target(operators, wanted, position, share)]
        case _:
            readouts = _logits(hosted, operators, command.target, position)
            return logit_targets_at(hosted, operators, readouts, position, share)


# --- logits -------------------------------------------------------------------------------------------


def _logits(
    hosted: HostedModel,
    operators: FrozenOperators,
    target: LogitTarget | TopLogits | TokenLogits,
    position: int,
) -> list[LogitReadout]:
    match target:
        case LogitTarget():
            other = None if target.against is None else hosted.resolve_target(target.against)
            return [logit_readout(hosted, hosted.resolve_target(target.token), other)]
        case TokenLogits():
            return [logit_readout(hosted, hosted.resolve_target(token)) for token in target.tokens]
        case TopLogits():
            likeliest = logits_at(operators, position).softmax(-1).topk(target.limit)
            needed = int((likeliest.values.double().cumsum(0) < target.mass).sum()) + 1
            return [logit_readout(hosted, token) for token in likeliest.indices[:needed].tolist()]


def logits_at(operators: FrozenOperators, position: int) -> Tensor:
    """Return the clean logits at a position, after a soft cap where there is one, `(d_vocab,)`."""
    if position == operators.n_pos - 1:
        return operators.logits
    architecture, dtype = operators.architecture, operators.dtype
    logits = architecture.W_U.to(dtype) @ operators.final[position]
    if architecture.b_U is not None:
        logits = logits + architecture.b_U.to(dtype)
    cap = architecture.logit_softcap
    return logits if cap is None else cap * torch.tanh(logits / cap)


def logit_targets_at(
    hosted: HostedModel,
    operators: FrozenOperators,
    readouts: Sequence[LogitReadout],
    position: int,
    share: float = 1.0,
) -> list[TargetReadout]:
    """Explain logits at a position, weighted by their probability.

    Args:
        hosted: The model.
        operators: Its clean pass.
        readouts: At least one.
        position: Where.
        share: Of all of them together.
    """
    logits = logits_at(operators, position)
    probabilities = logits.softmax(-1)
    sizes = torch.tensor([float(probabilities[readout.target]) for readout in readouts]).double()
    weights = sizes / sizes.sum() if float(sizes.sum()) > 0 else torch.full_like(sizes, 1 / len(sizes))
    return [
        _logit(hosted, operators, readout, position, share * weight, logits, probabilities)
        for readout, weight in zip(readouts, weights.tolist(), strict=True)
    ]


def _logit(
    hosted: HostedModel,
    operators: FrozenOperators,
    readout: LogitReadout,
    position: int,
    share: float,
    logits: Tensor,
    probabilities: Tensor,
) -> TargetReadout:
    token = hosted.token(readout.target)
    against = None if readout.against is None else hosted.token(readout.against)
    probability, label = float(probabilities[readout.target]), token.display
    if readout.against is not None and against is not None:
        probability -= float(probabilities[readout.against])
        label = f"{label!r} over {against.display!r}"
    if position < operators.n_pos - 1:
        label = f"{label} after position {position}"
    direction = readout.direction.to(operators.device, operators.dtype)
    return TargetReadout(
        about=ExplainedTarget(
            kind=TargetKind.LOGIT,
            label=label,
            position=position,
            share=share,
            value=float(readout.measure(logits)),
            token=token,
            against=against,
        ),
        parts=(
            ReadPart(
                place=top_place(operators),
                position=position,
                adjoint=_pulled(operators.final_norm, direction, position),
                constant=readout.bias + _norm_constant(operators.final_norm, direction),
                total=float(direction @ operators.final[position]) + readout.bias,
                live=_pulled_live(operators.final_norm, direction, position, operators.n_pos),
            ),
        ),
        gauge=LogitGauge(readout=readout, position=position),
        feature=readout.target,
        activation=probability,
    )


# --- features -----------------------------------------------------------------------------------------


def _feature(
    hosted: HostedModel,
    operators: FrozenOperators,
    layer: ActiveLayer,
    feature: int,
    label: str,
    position: int,
    share: float,
) -> TargetReadout:
    """Explain the pre-activation of a feature of a set, active or not, without the encoder's constants."""
    at, index = (torch.tensor([n], device=operators.device) for n in (position, feature))
    direction = encoder_directions(hosted, operators, layer, at, index)[0]
    site = layer.info.site_in
    total = float(direction @ clean_value(operators, site)[position])
    adjoint, live, constant = direction, direction, 0.0
    if site.kind is SiteKind.MLP_IN:
        norm = operators.layers[layer.ref.layer].mlp_norm
        adjoint, constant = _pulled(norm, direction, position), _norm_constant(norm, direction)
        live = _pulled_live(norm, direction, position, operators.n_pos)
    if is_linearised(layer.info):
        frozen = operators.layers[layer.ref.layer]
        read, added = through_mlp(frozen, direction[None], at)
        adjoint, norm = _pulled(frozen.mlp_norm, read[0], position), frozen.mlp_norm
        constant = float(added[0]) + _norm_constant(norm, read[0])
        live = live_output_adjoint(frozen, direction, position)
    part = ReadPart(
        place=read_place(layer.info),
        position=position,
        adjoint=adjoint,
        constant=constant,
        total=total,
        live=live,
    )
    gauge = SiteGauge(site=site, position=position, vector=direction)
    return _value(
        TargetKind.FEATURE,
        label,
        part,
        gauge,
        share,
        feature=feature,
        replacement=layer.ref.replacement,
        estimated=is_linearised(layer.info),
    )


def _neuron(operators: FrozenOperators, wanted: FeatureValue, position: int, share: float) -> TargetReadout:
    """Explain a neuron's activation by `relp_half`; its exact derivative goes through gate and read."""
    layer, number = operators.layers[wanted.layer], torch.tensor([wanted.layer])
    at, index = torch.tensor([position]), torch.tensor([wanted.index])
    row = neuron_targets(operators, number, at, index, "relp_half")
    chosen = layer.activation.new_zeros(layer.activation.shape[1])
    chosen[wanted.index] = 1
    by_neuron = torch.zeros_like(layer.activation)
    by_neuron[position] = chosen
    part = ReadPart(
        place=PER_BLOCK * wanted.layer + MLP,
        position=position,
        adjoint=_pulled(layer.mlp_norm, row.direction[0], position),
        constant=float(row.constant[0]) + _norm_constant(layer.mlp_norm, row.direction[0]),
        total=float(row.total[0]),
        live=live_mlp_adjoint(layer, by_neuron)[position],
    )
    label = f"neuron {wanted.layer}:{wanted.index} at position {position}"
    gauge = SiteGauge(site=Site(kind=SiteKind.NEURONS, layer=wanted.layer), position=position, vector=chosen)
    return _value(
        TargetKind.FEATURE,
        label,
        part,
        gauge,
        share,
        feature=wanted.index,
        replacement=NEURONS,
        estimated=True,
    )


# --- directions ---------------------------------------------------------------------------------------


def _direction(
    operators: FrozenOperators, wanted: DirectionValue, position: int, share: float
) -> TargetReadout:
    """Explain what a probe reads off the stream."""
    vector = torch.tensor(wanted.vector, dtype=operators.dtype, device=operators.device)
    part = ReadPart(
        place=place_of(wanted.site),
        position=position,
        adjoint=vector,
        constant=0.0,
        total=float(vector @ clean_value(operators, wanted.site)[position]),
        live=vector,
    )
    name = wanted.name or "direction"
    label = f"{name} at {wanted.site.kind.value} {wanted.site.layer}, position {position}"
    gauge = SiteGauge(site=_arriving(wanted.site), position=position, vector=vector)
    return _value(TargetKind.DIRECTION, label, part, gauge, share)


def _arriving(site: Site) -> Site:
    """Return where a pass first meets the stream that stands at a site, below a dictionary on either name."""
    if site.kind is not SiteKind.RESID_PRE:
        return site
    if site.layer:
        return Site(kind=SiteKind.RESID_POST, layer=site.layer - 1)
    return Site(kind=SiteKind.EMBED, layer=0)


def _value(
    kind: TargetKind,
    label: str,
    part: ReadPart,
    gauge: SiteGauge,
    share: float,
    *,
    feature: int = -1,
    replacement: str = "",
    estimated: bool = False,
) -> TargetReadout:
    return TargetReadout(
        about=ExplainedTarget(
            kind=kind,
            label=label,
            position=part.position,
            share=share,
            value=part.total,
            estimated=estimated,
            replacement=replacement,
        ),
        parts=(part,),
        gauge=gauge,
        feature=feature,
        activation=part.total,
    )


def _pulled(norm: FrozenNorm, direction: Tensor, position: int) -> Tensor:
    """Carry a direction `(d_model,)` on a norm's output to its input, scale frozen."""
    at = torch.tensor([position], device=direction.device)
    return norm.pull_back(direction[None], at)[0]


def _pulled_live(norm: FrozenNorm, direction: Tensor, position: int, n_pos: int) -> Tensor:
    cotangent = direction.new_zeros(n_pos, len(direction))
    cotangent[position] = direction
    return norm.pull_back_live(cotangent)[position]


def _norm_constant(norm: FrozenNorm, direction: Tensor) -> float:
    return 0.0 if norm.bias is None else float(direction @ norm.bias)
