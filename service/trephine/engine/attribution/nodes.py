"""Nodes of a circuit as people read them: labels, lens tokens, activations, effects."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from trephine.domain.circuits import Node, NodeKind
from trephine.domain.error_sites import error_number
from trephine.domain.sites import NEURONS, FeatureRef, Site
from trephine.engine.attribution.assembly import NodeOrder
from trephine.engine.attribution.expansion import Expansion
from trephine.engine.attribution.targets import Explained, TargetReadout
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.lens import decoder_directions, extreme_tokens, lens_logits
from trephine.engine.replacements.sets import opened

_LENS_TOKENS = 5
_LENS_BATCH = 48
"""Decoders per quantum."""

Lens = dict[FeatureRef, tuple[tuple[str, ...], tuple[str, ...]]]


class Asked(Protocol):
    """The part of a request that nodes show."""

    @property
    def ids(self) -> list[int]:
        """The prompt."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What nodes show beside their place in the graph."""

    features: Sequence[FeatureRef]
    """`n_features` addresses, in the circuit's order."""
    activation: Tensor
    """`(n_features,)`, in the circuit's order."""
    effect: Tensor
    """`(n_features,)`, logits."""
    directions: Callable[[Sequence[FeatureRef]], Tensor]
    """What features, sorted, write into the residual stream, `(n, d_model)`."""
    errors: Sequence[tuple[Site, str]]
    """Every error site, with its name."""
    error_effect: Tensor
    """`(n_errors,)`, logits."""
    token_effect: Tensor
    """`(n_pos,)`, logits."""


def describe_nodes(
    hosted: HostedModel,
    asked: Asked,
    explained: Explained,
    expansion: Expansion,
    order: NodeOrder,
    facts: NodeFacts,
) -> Generator[None, None, tuple[Node, ...]]:
    """Describe every node in the circuit's order; a batch of decoders per quantum."""
    _, position, _ = expansion.cells.split(order.features)
    lens = yield from _read_lens(hosted, facts)
    displays = [token.display for token in hosted.tokens(asked.ids)]
    features = [
        _feature(expansion, facts, displays, lens, number, cell, at)
        for number, (cell, at) in enumerate(zip(order.features.tolist(), position.tolist(), strict=True))
    ]
    errors = [_error(expansion, facts, displays, place) for place in order.errors.tolist()]
    tokens = [_token(expansion, facts, displays, place, token_id) for place, token_id in enumerate(asked.ids)]
    targets = [_target(hosted, target) for target in explained.targets]
    return (*features, *errors, *tokens, *targets)


def _read_lens(hosted: HostedModel, facts: NodeFacts) -> Generator[None, None, Lens]:
    lens: Lens = {}
    unique = sorted(set(facts.features))
    for start in range(0, len(unique), _LENS_BATCH):
        batch = unique[start : start + _LENS_BATCH]
        scores = lens_logits(hosted.architecture, facts.directions(batch))
        for address, ends in zip(batch, extreme_tokens(hosted, scores, _LENS_TOKENS), strict=True):
            promoted, suppressed = (tuple(token.display for token, _ in end) for end in ends)
            lens[address] = (promoted, suppressed)
        yield None
    return lens


def directions_of(hosted: HostedModel, batch: Sequence[FeatureRef]) -> Tensor:
    """Return what features, sorted, write in all, summed over their sites, `(n, d_model)`."""
    parts = []
    for (name, layer), group in groupby(batch, key=lambda each: (each.replacement, each.layer)):
        indices = [each.index for each in group]
        if name == NEURONS:
            parts.append(decoder_directions(hosted.architecture, layer, torch.tensor(indices)))
            continue
        with opened(hosted, name, [layer]) as resident, torch.inference_mode():
            found = resident[layer]
            parts.append(torch.stack([found.decoders(indices, s) for s in found.info.sites_out]).sum(0))
    return torch.cat(parts)


def _feature(
    expansion: Expansion,
    facts: NodeFacts,
    displays: list[str],
    lens: Lens,
    number: int,
    cell: int,
    position: int,
) -> Node:
    feature = facts.features[number]
    promotes, suppresses = lens[feature]
    noun = "neuron" if feature.replacement == NEURONS else "feature"
    return Node(
        kind=NodeKind.FEATURE,
        layer=feature.layer,
        position=position,
        feature=feature.index,
        replacement=feature.replacement,
        activation=float(facts.activation[number]),
        influence=float(expansion.influence.neurons[cell]),
        effect=float(facts.effect[number]),
        label=f"{noun} {feature.layer}:{feature.index} at {displays[position]!r}",
        promotes=promotes,
        suppresses=suppresses,
    )


def _error(expansion: Expansion, facts: NodeFacts, displays: list[str], place: int) -> Node:
    site, position = divmod(place, expansion.cells.n_pos)
    where, name = facts.errors[site]
    return _plain_node(
        NodeKind.ERROR,
        layer=where.layer,
        position=position,
        feature=error_number(where.kind),
        activation=0.0,
        influence=float(expansion.influence.errors[place]),
        effect=float(facts.error_effect[place]),
        label=f"{name} at {displays[position]!r}",
    )


def _token(expansion: Expansion, facts: NodeFacts, displays: list[str], position: int, token_id: int) -> Node:
    return _plain_node(
        NodeKind.TOKEN,
        layer=-1,
        position=position,
        feature=token_id,
        activation=0.0,
        influence=float(expansion.influence.tokens[position]),
        effect=float(facts.token_effect[position]),
        label=displays[position],
    )


def _target(hosted: HostedModel, target: TargetReadout) -> Node:
    """Targets lie above all layers, whatever they read."""
    return _plain_node(
        NodeKind.LOGIT,
        layer=hosted.architecture.n_layers,
        position=target.about.position,
        feature=target.feature,
        activation=target.activation,
        influence=target.about.share,
        effect=target.about.share * target.about.value,
        label=target.about.label,
    )


def _plain_node(
    kind: NodeKind,
    *,
    layer: int,
    position: int,
    feature: int,
    activation: float,
    influence: float,
    effect: float,
    label: str,
) -> Node:
    return Node(
        kind=kind,
        layer=layer,
        position=position,
        feature=feature,
        replacement="",
        activation=activation,
        influence=influence,
        effect=effect,
        label=label,
        promotes=(),
        suppresses=(),
    )
