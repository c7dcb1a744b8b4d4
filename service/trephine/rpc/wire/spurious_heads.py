"""What decides, on the wire."""

from __future__ import annotations

from typing import Any

from trephine.domain import spurious_heads as domain
from trephine.rpc.wire.fields import at_least, clean, finite, one_of, required, within
from trephine.v1 import spurious_removal_pb2 as pb

_POOLINGS: dict[int, domain.Pooling] = {
    pb.TEXT_POOLING_UNSPECIFIED: domain.Pooling.LAST,
    pb.TEXT_POOLING_LAST: domain.Pooling.LAST,
    pb.TEXT_POOLING_MEAN: domain.Pooling.MEAN,
}
_POOLING_NUMBERS = {
    domain.Pooling.LAST: pb.TEXT_POOLING_LAST,
    domain.Pooling.MEAN: pb.TEXT_POOLING_MEAN,
}


def decision_from_wire(message: pb.DecisionHead) -> domain.DecisionHead:
    """Read a head; unset is a probe in the stock form.

    Raises:
        InvalidRequestError: Naming the field; where a number is not finite, `NonFiniteValueError`.
    """
    kind = message.WhichOneof("kind")
    with within("decision"):
        match kind:
            case "tokens":
                return _tokens(message.tokens)
            case "classifier":
                return domain.ClassifierHead(folder=required(message.classifier.source, "classifier.source"))
            case "reward":
                threshold = (
                    finite(message.reward.threshold, "reward.threshold")
                    if message.reward.HasField("threshold")
                    else None
                )
                return domain.RewardHead(
                    folder=required(message.reward.source, "reward.source"),
                    threshold=threshold,
                    positive_label=required(message.reward.positive_label, "reward.positive_label"),
                )
            case _:
                return _probe(message.probe)


def decision_to_wire(head: domain.DecisionHead) -> pb.DecisionHead:
    """Write a head; of a folder only its name, since paths stay on the server."""
    match head:
        case domain.ProbeHead():
            probe = pb.ProbeHead(
                layer=head.layer,
                pooling=_POOLING_NUMBERS[head.pooling],
                penalty=head.penalty,
                pairs=head.pairs,
            )
            return pb.DecisionHead(probe=probe)
        case domain.TokenHead():
            tokens = [pb.LabelToken(label=clean(one.label), token=clean(one.token)) for one in head.tokens]
            return pb.DecisionHead(tokens=pb.TokenHead(tokens=tokens, template=clean(head.template)))
        case domain.ClassifierHead():
            return pb.DecisionHead(classifier=pb.ClassifierHead(source=_last_part(head.folder)))
        case domain.RewardHead():
            reward = pb.RewardHead(
                source=_last_part(head.folder),
                threshold=head.threshold,
                positive_label=clean(head.positive_label),
            )
            return pb.DecisionHead(reward=reward)


def _probe(message: pb.ProbeHead) -> domain.ProbeHead:
    given: dict[str, Any] = {
        "pooling": one_of(message.pooling, _POOLINGS, "probe.pooling"),
        "pairs": message.pairs,
    }
    if message.HasField("layer"):
        given["layer"] = at_least(message.layer, 0, "probe.layer")
    if message.HasField("penalty"):
        given["penalty"] = message.penalty
    return domain.ProbeHead(**given)


def _tokens(message: pb.TokenHead) -> domain.TokenHead:
    tokens = tuple(
        domain.LabelToken(
            label=required(one.label, f"tokens.tokens[{place}].label"),
            token=required(one.token, f"tokens.tokens[{place}].token"),
        )
        for place, one in enumerate(message.tokens)
    )
    template = message.template if message.HasField("template") else domain.TEXT
    return domain.TokenHead(tokens=tokens, template=template)


def _last_part(folder: str) -> str:
    return clean(folder.rstrip("/").rpartition("/")[2])
