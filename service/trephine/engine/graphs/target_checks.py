"""Can this be explained? Everything that can be known of a target before the prompt is run."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trephine.domain.ablation import LogitTarget
from trephine.domain.circuits import DiscoverCircuit
from trephine.domain.errors import (
    FeatureOutOfRangeError,
    InvalidRequestError,
    LayerOutOfRangeError,
    NonFiniteValueError,
    PositionOutOfRangeError,
    ShapeMismatchError,
    TrephineError,
)
from trephine.domain.sites import NEURONS
from trephine.domain.targets import (
    MOST_TARGETS,
    AttentionScore,
    DirectionValue,
    FeatureValue,
    TokenLogits,
    TopLogits,
)
from trephine.engine.attribution.readouts import logit_readout
from trephine.engine.graphs.open_layers import open_layers
from trephine.engine.models.hosted import HostedModel
from trephine.engine.models.sites import require_site, site_width
from trephine.engine.replacements.sets import layer_info


def check_target(hosted: HostedModel, command: DiscoverCircuit, n_pos: int) -> None:
    """Refuse a target that does not exist.

    Raises:
        TargetNotOneTokenError, TokenOutOfRangeError: For tokens.
        LayerOutOfRangeError, FeatureOutOfRangeError, PositionOutOfRangeError: For addresses.
        ShapeMismatchError: For a direction of another length than the stream.
        NonFiniteValueError: For a direction that float32 does not hold.
        UnsupportedOptionError: For a site that the architecture does not have.
        InvalidRequestError: If there are too many read-outs.
    """
    positions = asked_positions(command.positions, n_pos)
    count = len(positions) * _per_position(command)
    if count > MOST_TARGETS:
        raise InvalidRequestError(
            f"that makes {count} targets and one graph explains at most {MOST_TARGETS}; name fewer positions "
            "or logits",
            field="positions",
        )
    match command.target:
        case LogitTarget(token=token, against=against):
            other = None if against is None else _resolved(hosted, against, "target.against")
            logit_readout(hosted, _resolved(hosted, token, "target.token"), other)
        case TokenLogits(tokens=tokens):
            _check_tokens(hosted, tokens)
        case FeatureValue() as wanted:
            _check_feature(hosted, command, wanted)
        case DirectionValue() as wanted:
            _check_direction(hosted, wanted)
        case AttentionScore() as wanted:
            _check_score(hosted, wanted, positions)
        case _:
            pass


def asked_positions(positions: Sequence[int], n_pos: int) -> tuple[int, ...]:
    """Return where targets are read, ascending; none: the last position. -1 is the last, too.

    Raises:
        PositionOutOfRangeError: If the prompt does not have one.
        InvalidRequestError: If one is named twice.
    """
    for position in positions:
        if not -n_pos <= position < n_pos:
            raise PositionOutOfRangeError(
                f"position {position} does not exist: the prompt has positions 0 to {n_pos - 1}, and -1 to "
                f"-{n_pos} count from its end",
                field="positions",
                position=position,
            )
    found = sorted({position % n_pos for position in positions} or {n_pos - 1})
    if len(found) < len(positions):
        raise InvalidRequestError("a position is named twice", field="positions")
    return tuple(found)


def _per_position(command: DiscoverCircuit) -> int:
    match command.target:
        case TopLogits(limit=limit):
            return limit
        case TokenLogits(tokens=tokens):
            return len(tokens)
        case _:
            return 1


def _resolved(hosted: HostedModel, token: str, field: str) -> int:
    try:
        return hosted.resolve_target(token)
    except TrephineError as error:
        raise error.with_field(field) from None


def _check_tokens(hosted: HostedModel, tokens: Sequence[str]) -> None:
    ids = [_resolved(hosted, token, f"target.tokens[{n}]") for n, token in enumerate(tokens)]
    if len(set(ids)) < len(ids):
        raise InvalidRequestError("a token is named twice", field="target.tokens")


def _check_layer(hosted: HostedModel, layer: int) -> None:
    n_layers = hosted.architecture.n_layers
    if not 0 <= layer < n_layers:
        raise LayerOutOfRangeError(
            f"layer {layer} does not exist: the model has layers 0 to {n_layers - 1}",
            field="target.layer",
            layer=layer,
        )


def _check_feature(hosted: HostedModel, command: DiscoverCircuit, wanted: FeatureValue) -> None:
    _check_layer(hosted, wanted.layer)
    name = wanted.replacement or command.replacement
    if name not in command.sets:
        raise InvalidRequestError(
            f"the graph spans {', '.join(command.sets)}, and the target is a feature of {name}: name that "
            "set beside them, or explain a feature of one of them",
            field="target.replacement",
        )
    if command.sets != (NEURONS,):
        opened = [ref for ref in open_layers(hosted, command.sets, command.layers) if ref.replacement == name]
        if wanted.layer not in {ref.layer for ref in opened}:
            told = f"layers {', '.join(str(ref.layer) for ref in opened)}" if opened else "no layer"
            raise LayerOutOfRangeError(
                f"of {name} the graph opens {told}, and the target is a feature of layer {wanted.layer}: "
                "name it among the layers, where no other set reconstructs what it does, or explain a "
                "feature of one that is opened",
                field="target.layer",
                layer=wanted.layer,
            )
    width = layer_info(hosted, name, wanted.layer).d_sae
    if not 0 <= wanted.index < width:
        raise FeatureOutOfRangeError(
            f"layer {wanted.layer} has features 0 to {width - 1}, got {wanted.index}",
            field="target.index",
            index=wanted.index,
        )


def _check_direction(hosted: HostedModel, wanted: DirectionValue) -> None:
    width = site_width(hosted.architecture, require_site(hosted.architecture, wanted.site))
    if len(wanted.vector) != width:
        raise ShapeMismatchError(
            f"the direction has {len(wanted.vector)} numbers, {wanted.site.kind.value} has {width}",
            field="target.vector",
            got=len(wanted.vector),
            expected=width,
        )
    if not bool(torch.tensor(wanted.vector, dtype=torch.float32).isfinite().all()):
        raise NonFiniteValueError(
            "the direction has numbers that are larger than float32 holds; scale it down",
            field="target.vector",
        )


def _check_score(hosted: HostedModel, wanted: AttentionScore, positions: Sequence[int]) -> None:
    _check_layer(hosted, wanted.layer)
    attention = hosted.architecture.blocks[wanted.layer].attention
    if not 0 <= wanted.head < attention.n_heads:
        raise InvalidRequestError(
            f"head {wanted.head} does not exist: layer {wanted.layer} has heads 0 to {attention.n_heads - 1}",
            field="target.head",
        )
    window = getattr(attention.module, "sliding_window", None)
    for query in positions:
        first = 0 if window is None else max(0, query + 1 - window)
        if not first <= wanted.key <= query:
            raise PositionOutOfRangeError(
                f"query {query} sees keys {first} to {query} in layer {wanted.layer}, and not {wanted.key}",
                field="target.key",
                position=wanted.key,
            )
