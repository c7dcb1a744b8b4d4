"""A grown circuit as a value: nodes in a circuit's order, edges, figures, and what a reader must know."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from math import nan
from time import monotonic

import numpy as np
import torch
from torch import Tensor

from trephine.domain.arrays import Array
from trephine.domain.circuits import Circuit, CircuitFigures, Edges, Node, NodeKind, Rows
from trephine.domain.commands import Progress
from trephine.domain.global_circuits import DiscoverGlobalCircuit
from trephine.domain.global_figures import GlobalFigures
from trephine.domain.sites import NEURONS, FeatureRef
from trephine.domain.targets import ExplainedTarget, TargetKind
from trephine.domain.tokens import Token
from trephine.engine.global_circuits.activity import Activity
from trephine.engine.global_circuits.caveats import caveats
from trephine.engine.global_circuits.growth import GrownCircuit
from trephine.engine.global_circuits.measured import MeasuredEdges
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.lens import Ends, extreme_tokens, lens_logits
from trephine.engine.models.memory import MemoryMeter
from trephine.engine.replacements.sets import require_set

EVERYWHERE = Token(id=-1, raw=b"", display="every position")
"""The one token of a global circuit: its nodes are features at any position of any text."""
_LENS_TOKENS = 5
_LENS_BATCH = 48
"""Decoders per quantum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """Everything that a circuit is written from."""

    hosted: HostedModel
    command: DiscoverGlobalCircuit
    edges: MeasuredEdges
    grown: GrownCircuit
    activity: Activity
    written: Tensor
    """`(n, d_model)`, what candidates write."""
    across: GlobalFigures


@dataclass(frozen=True, slots=True)
class _Wires:
    """Edges between nodes; `strength` has no units."""

    source: Tensor
    target: Tensor
    weight: Tensor
    strength: Tensor


def described(
    what: Described, started: float, meter: MemoryMeter
) -> Generator[Progress | None, None, Circuit]:
    """Write the circuit; a batch of decoders per quantum."""
    command, hosted, wires = what.command, what.hosted, _wires(what)
    yield Progress(stage="nodes", done=0, total=1)
    lens = yield from _lens(what)
    nodes = _nodes(what, lens, _influences(wires, _count(what)))
    meter.sample()
    return Circuit(
        prompt="",
        tokens=(EVERYWHERE,),
        targets=_targets(what),
        replacement=command.replacement,
        edge_rule=command.weighting.value,
        nodes=nodes,
        edges=Edges(
            source=_array(wires.source, "<i4"),
            target=_array(wires.target, "<i4"),
            weight=_array(wires.weight, "<f4"),
        ),
        rows=Rows(
            target=_array(torch.zeros(0), "<i4"),
            total=_array(torch.zeros(0), "<f4"),
            bias=_array(torch.zeros(0), "<f4"),
            remainder=_array(torch.zeros(0), "<f4"),
        ),
        quality=None,
        figures=_figures(what, monotonic() - started, meter.extra_bytes),
        model=hosted.info.name,
        weight_hash=hosted.info.weight_hash,
        caveats=caveats(hosted, command, what.across),
        set_hash=_set_hash(hosted, command.replacement),
        layers=what.edges.chosen.space.layers,
        across=what.across,
    )


def _set_hash(hosted: HostedModel, name: str) -> str:
    return "" if name == NEURONS else require_set(hosted, name).admitted.content_hash


def _count(what: Described) -> int:
    grown = what.grown
    return len(grown.features) + len(grown.tokens) + len(grown.logits) + _has_direction(what)


def _has_direction(what: Described) -> bool:
    return what.command.start.direction is not None


# --- edges ----------------------------------------------------------------------------------------


def _wires(what: Described) -> _Wires:
    """Lay nodes out as features, tokens, targets, and list edges by target."""
    grown, edges, n = what.grown, what.edges, len(what.grown.features)
    first_logit = n + len(grown.tokens)
    parts = [_between(what)]
    token, into = grown.from_tokens
    at = (grown.tokens[token], grown.features[into])
    parts.append(_Wires(n + token, into, edges.from_tokens.cpu()[at], edges.token_shares.cpu()[at]))
    source, logit = grown.to_logits
    weight = edges.to_logits.cpu()[grown.features[source], grown.logits[logit]]
    parts.append(_Wires(source, first_logit + logit, weight, _of_target(weight, logit, len(grown.logits))))
    weight = edges.to_direction.cpu()[grown.features[grown.to_direction]]
    last = torch.full_like(grown.to_direction, first_logit + len(grown.logits))
    parts.append(_Wires(grown.to_direction, last, weight, _of_target(weight, torch.zeros_like(last), 1)))
    columns = [[part.source, part.target, part.weight, part.strength] for part in parts]
    source, target, weight, strength = (torch.cat(column) for column in zip(*columns, strict=True))
    order = (target * _count(what) + source).argsort()
    return _Wires(source[order], target[order], weight[order], strength[order])


def _between(what: Described) -> _Wires:
    source, target = what.grown.between
    at = (what.grown.features[source], what.grown.features[target])
    return _Wires(source, target, what.edges.weight.cpu()[at], what.edges.shares.cpu()[at])


def _of_target(weight: Tensor, target: Tensor, count: int) -> Tensor:
    """Return shares of the absolute weights into the same target."""
    into = torch.zeros(count).index_add_(0, target, weight.abs())
    return weight.abs() / into[target].clamp_min(1e-30)


def _influences(wires: _Wires, count: int) -> list[float]:
    """Return each node's share of the strength of all edges, half of it at either end."""
    at = torch.zeros(count).index_add_(0, wires.source, wires.strength)
    at = at.index_add_(0, wires.target, wires.strength)
    shares: list[float] = (at / at.sum().clamp_min(1e-30)).tolist()
    return shares


# --- nodes ----------------------------------------------------------------------------------------


def _lens(what: Described) -> Generator[None, None, list[Ends]]:
    found: list[Ends] = []
    for batch in what.written[what.grown.features.to(what.written.device)].split(_LENS_BATCH):
        with torch.inference_mode():
            scores = lens_logits(what.hosted.architecture, batch)
        found += extreme_tokens(what.hosted, scores, _LENS_TOKENS)
        yield None
    return found


def _nodes(what: Described, lens: Sequence[Ends], influences: Sequence[float]) -> tuple[Node, ...]:
    grown, edges, hosted = what.grown, what.edges, what.hosted
    numbers = edges.chosen.features[grown.features]
    refs, sizes = edges.chosen.space.refs(numbers), what.activity.where_active[numbers].tolist()
    features = [_feature(ref, size, ends) for ref, size, ends in zip(refs, sizes, lens, strict=True)]
    tokens = [
        _plain(
            NodeKind.TOKEN, -1, edges.ends.tokens[place], hosted.token(edges.ends.tokens[place]).display, 0.0
        )
        for place in grown.tokens.tolist()
    ]
    targets = [
        _plain(NodeKind.LOGIT, hosted.info.n_layers, feature, target.label, nan)
        for target, feature in zip(_targets(what), _target_numbers(what), strict=True)
    ]
    return tuple(
        replace(node, influence=share)
        for node, share in zip((*features, *tokens, *targets), influences, strict=True)
    )


def _feature(ref: FeatureRef, size: float, ends: Ends) -> Node:
    promotes, suppresses = (tuple(token.display for token, _ in end) for end in ends)
    noun = "neuron" if ref.replacement == NEURONS else "feature"
    return Node(
        kind=NodeKind.FEATURE,
        layer=ref.layer,
        position=0,
        feature=ref.index,
        replacement=ref.replacement,
        activation=size,
        influence=0.0,
        effect=nan,
        label=f"{noun} {ref.layer}:{ref.index}",
        promotes=promotes,
        suppresses=suppresses,
    )


def _plain(kind: NodeKind, layer: int, feature: int, label: str, activation: float) -> Node:
    return Node(
        kind=kind,
        layer=layer,
        position=0,
        feature=feature,
        replacement="",
        activation=activation,
        influence=0.0,
        effect=nan,
        label=label,
        promotes=(),
        suppresses=(),
    )


def _target_numbers(what: Described) -> list[int]:
    tokens = [what.edges.ends.logits[place] for place in what.grown.logits.tolist()]
    return [*tokens, -1] if _has_direction(what) else tokens


def _targets(what: Described) -> tuple[ExplainedTarget, ...]:
    """List what stands above features, each of the same weight."""
    numbers, direction = _target_numbers(what), what.command.start.direction
    share = 1 / max(1, len(numbers))
    found = [
        ExplainedTarget(
            kind=TargetKind.LOGIT,
            label=what.hosted.token(token).display,
            position=0,
            share=share,
            value=nan,
            token=what.hosted.token(token),
        )
        for token in numbers
        if token >= 0
    ]
    if direction is not None:
        name = direction.name or f"direction at {direction.site.kind.value} {direction.site.layer}"
        found.append(
            ExplainedTarget(kind=TargetKind.DIRECTION, label=name, position=0, share=share, value=nan)
        )
    return tuple(found)


def _figures(what: Described, seconds: float, extra_bytes: int) -> CircuitFigures:
    return CircuitFigures(
        baseline=nan,
        selected_share=nan,
        error_share=nan,
        active_features=what.across.active_features,
        selected_features=len(what.grown.features),
        seconds=seconds,
        peak_extra_bytes=extra_bytes,
    )


def _array(values: Tensor, kind: str) -> Array:
    column = values.cpu().numpy().astype(np.dtype(kind))
    return Array(dtype=column.dtype.name, shape=column.shape, data=column.tobytes())  # type: ignore[arg-type]
