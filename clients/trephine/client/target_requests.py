"""What a graph explains, as a message."""

from __future__ import annotations

from collections.abc import Sequence

from trephine.client.errors import InvalidRequestError
from trephine.client.sendable import listed, sendable
from trephine.client.set_ids import set_id
from trephine.client.types.interventions import site_message
from trephine.client.types.targets import (
    AttentionScore,
    DirectionValue,
    FeatureValue,
    Target,
    TokenLogits,
    TopLogits,
)
from trephine.v1 import circuit_targets_pb2 as pb
from trephine.v1 import common_pb2


@sendable
def graph_target(target: Target, against: str | None, positions: Sequence[int]) -> pb.GraphTarget:
    """Say what is explained.

    Raises:
        InvalidRequestError: If something other than a token is held against a token.
    """
    if against is not None and not isinstance(target, str):
        raise InvalidRequestError(
            "only a token can be held against another token; leave `against` out", field="against"
        )
    match target:
        case str():
            logit = common_pb2.LogitTarget(token=target, against=against)
            message = pb.GraphTarget(logit=logit)
        case TopLogits(limit=limit, mass=mass):
            message = pb.GraphTarget(top_logits=pb.TopLogits(limit=limit, mass=mass))
        case TokenLogits(tokens=tokens):
            message = pb.GraphTarget(token_logits=pb.TokenLogits(tokens=listed(tokens, "tokens")))
        case FeatureValue(layer=layer, index=index, replacement=replacement):
            feature = pb.FeatureValue(layer=layer, index=index, replacement=set_id(replacement))
            message = pb.GraphTarget(feature=feature)
        case DirectionValue():
            message = pb.GraphTarget(direction=direction_value(target))
        case AttentionScore(layer=layer, head=head, key=key):
            message = pb.GraphTarget(attention=pb.AttentionScore(layer=layer, head=head, key=key))
        case _:
            raise InvalidRequestError(
                f"{target!r} is nothing that a graph explains; name a token, as in ' Paris', or build one "
                "of TopLogits, TokenLogits, FeatureValue, DirectionValue, AttentionScore",
                field="target",
            )
    message.positions.extend(listed(positions, "positions"))
    return message


def direction_value(direction: DirectionValue) -> pb.DirectionValue:
    """The contract's direction of the stream."""
    vector = listed(direction.vector, "vector")
    return pb.DirectionValue(site=site_message(direction.site), vector=vector, name=direction.name)
