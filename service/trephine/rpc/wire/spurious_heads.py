"""What decides, on the wire."""

from __future__ import annotations

from typing import Any

from trephine.domain import spurious_heads as domain
from trephine.rpc.wire.fields import at_least, clean, finite, one_of, required
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
    match message.WhichOneof("kind"):
        case "tokens":
            return _tokens(message.tokens)
        case "classifier":
            source = required(message.classifier.source, "decision.classifier.source")
            return domain.ClassifierHead(folder=source)
        case "reward":
            return _reward(message.reward)
        case _:
            return _probe(message.probe)


def _reward(message: pb.RewardHead) -> domain.RewardHead:
    threshold = finite(message.threshold, "decision.reward.threshold")
    return domain.RewardHead(
        folder=required(message.source, "decision.reward.source"),
        threshold=threshold if message.HasField("threshold") else None,
        positive_label=required(message.positive_label, "decision.reward.positive_label"),
    )


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
        "pooling": one_of(message.pooling, _POOLINGS, "decision.probe.pooling"),
        "pairs": message.pairs,
    }
    if message.HasField("layer"):
        given["layer"] = at_least(message.layer, 0, "decision.probe.layer")
    if message.HasField("penalty"):
        given["penalty"] = message.penalty
    return domain.ProbeHead(**given)


def _tokens(message: pb.TokenHead) -> domain.TokenHead:
    tokens = tuple(
        domain.LabelToken(
            label=required(one.label, f"decision.tokens.tokens[{place}].label"),
            token=required(one.token, f"decision.tokens.tokens[{place}].token"),
        )
        for place, one in enumerate(message.tokens)
    )
    template = message.template if message.HasField("template") else domain.TEXT
    return domain.TokenHead(tokens=tokens, template=template)


def _last_part(folder: str) -> str:
    return clean(folder.rstrip("/").rpartition("/")[2])
