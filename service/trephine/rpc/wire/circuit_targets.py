"""What graphs explain, to and from messages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from trephine.domain.ablation import LogitTarget
from trephine.domain.errors import InvalidRequestError, TrephineError
from trephine.domain.targets import (
    AttentionScore,
    DirectionValue,
    ExplainedTarget,
    FeatureValue,
    GraphTarget,
    TargetKind,
    TokenLogits,
    TopLogits,
)
from trephine.rpc.wire.common import logit_target_from_wire, site_from_wire, token_to_wire
from trephine.rpc.wire.fields import at_least, clean, finite, required, within
from trephine.v1 import circuit_targets_pb2 as pb

_KINDS = {
    TargetKind.LOGIT: pb.TARGET_KIND_LOGIT,
    TargetKind.FEATURE: pb.TARGET_KIND_FEATURE,
    TargetKind.DIRECTION: pb.TARGET_KIND_DIRECTION,
    TargetKind.ATTENTION: pb.TARGET_KIND_ATTENTION,
}
_FIELDS: dict[type, str] = {
    LogitTarget: "logit",
    TopLogits: "top_logits",
    TokenLogits: "token_logits",
    FeatureValue: "feature",
    DirectionValue: "direction",
    AttentionScore: "attention",
}


def graph_target_from_wire(message: pb.GraphTarget) -> GraphTarget:
    """Read what is explained; positions stand beside it.

    Raises:
        InvalidRequestError: Naming the field.
    """
    match message.WhichOneof("kind"):
        case "logit":
            with within("logit"):
                return logit_target_from_wire(message.logit)
        case "top_logits":
            return _top(message.top_logits)
        case "token_logits":
            tokens = message.token_logits.tokens
            return TokenLogits(
                tokens=tuple(
                    required(token, f"token_logits.tokens[{index}]") for index, token in enumerate(tokens)
                )
            )
        case "feature":
            return FeatureValue(
                layer=at_least(message.feature.layer, 0, "feature.layer"),
                index=at_least(message.feature.index, 0, "feature.index"),
                replacement=message.feature.replacement,
            )
        case "direction":
            with within("direction"):
                return direction_from_wire(message.direction)
        case "attention":
            return AttentionScore(
                layer=at_least(message.attention.layer, 0, "attention.layer"),
                head=at_least(message.attention.head, 0, "attention.head"),
                key=at_least(message.attention.key, 0, "attention.key"),
            )
        case _:
            raise InvalidRequestError(
                "say what is explained: logit, top_logits, token_logits, feature, direction or attention",
                field="kind",
            )


def _top(message: pb.TopLogits) -> TopLogits:
    limit = message.limit if message.HasField("limit") else 10
    mass = finite(message.mass, "top_logits.mass") if message.HasField("mass") else 0.95
    return TopLogits(limit=limit, mass=mass)


def direction_from_wire(message: pb.DirectionValue) -> DirectionValue:
    """Read a direction of the stream.

    Raises:
        InvalidRequestError: Naming the field.
    """
    with within("site"):
        site = site_from_wire(message.site)
    return DirectionValue(site=site, vector=tuple(message.vector), name=message.name)


def explained_to_wire(target: ExplainedTarget) -> pb.ExplainedTarget:
    """Write a target node."""
    return pb.ExplainedTarget(
        kind=_KINDS[target.kind],
        label=clean(target.label),
        position=target.position,
        share=target.share,
        value=target.value,
        estimated=target.estimated,
        token=None if target.token is None else token_to_wire(target.token),
        against=None if target.against is None else token_to_wire(target.against),
        replacement=clean(target.replacement),
    )


@contextmanager
def checked_target(target: GraphTarget) -> Iterator[None]:
    """Name fields of errors raised inside as they stand in the request: `index` is `feature.index` there."""
    try:
        yield
    except TrephineError as error:
        first, _, rest = str(error.context.get("field", "")).partition(".")
        if first == "positions":
            error.context["field"] = "target.positions"
        elif first == "target" and rest:
            error.context["field"] = f"target.{_FIELDS[type(target)]}.{rest}"
        raise


def tokens_named(target: GraphTarget) -> Sequence[tuple[str, str]]:
    """List the texts that must be tokens, each with the field that it stands in."""
    match target:
        case LogitTarget(token=token, against=None):
            return (("logit.token", token),)
        case LogitTarget(token=token, against=str(against)):
            return (("logit.token", token), ("logit.against", against))
        case TokenLogits(tokens=tokens):
            return tuple((f"token_logits.tokens[{index}]", token) for index, token in enumerate(tokens))
        case _:
            return ()
