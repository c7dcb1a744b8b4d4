"""How an intervention changes what it targets, both ways."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.empty_pb2 import Empty

from trephine.domain import interventions as domain
from trephine.domain.errors import InvalidRequestError
from trephine.rpc.wire.fields import clean, finite, prompt
from trephine.v1 import interventions_pb2 as pb

Message = pb.InterventionOperation

_READERS: dict[str, Callable[[Message], domain.Operation]] = {
    "ablate": lambda message: domain.Ablate(),
    "scale": lambda message: domain.Scale(factor=finite(message.scale, "scale")),
    "set": lambda message: domain.SetTo(value=finite(message.set, "set")),
    "clamp": lambda message: _clamp_from_wire(message.clamp),
    "add": lambda message: domain.Add(amount=finite(message.add, "add")),
    "add_norm_scaled": lambda message: domain.AddNormScaled(
        fraction=finite(message.add_norm_scaled, "add_norm_scaled")
    ),
    "project_out": lambda message: domain.ProjectOut(),
    "mean_ablate_text": lambda message: domain.MeanAblate(
        text=prompt(message.mean_ablate_text, "mean_ablate_text")
    ),
    "resample_donor": lambda message: domain.Resample(donor=prompt(message.resample_donor, "resample_donor")),
}


def operation_from_wire(message: Message) -> domain.Operation:
    """Read an operation; exactly one must be set.

    Raises:
        InvalidRequestError: If none is set, or a clamp has no bound or crossed bounds.
        NonFiniteValueError: If a number is NaN or infinite.
    """
    which = message.WhichOneof("operation")
    if which is None:
        raise InvalidRequestError(f"set exactly one of {', '.join(_READERS)}")
    return _READERS[which](message)


def operation_to_wire(operation: domain.Operation) -> Message:
    """Write an operation."""
    match operation:
        case domain.Ablate():
            return Message(ablate=Empty())
        case domain.Scale(factor=factor):
            return Message(scale=factor)
        case domain.SetTo(value=value):
            return Message(set=value)
        case domain.Clamp(low=low, high=high):
            return Message(clamp=pb.ClampRange(low=low, high=high))
        case domain.Add(amount=amount):
            return Message(add=amount)
        case domain.AddNormScaled(fraction=fraction):
            return Message(add_norm_scaled=fraction)
        case domain.ProjectOut():
            return Message(project_out=Empty())
        case domain.MeanAblate(text=text):
            return Message(mean_ablate_text=clean(text))
        case domain.Resample(donor=donor):
            return Message(resample_donor=clean(donor))


def _clamp_from_wire(message: pb.ClampRange) -> domain.Clamp:
    low = finite(message.low, "clamp.low") if message.HasField("low") else None
    high = finite(message.high, "clamp.high") if message.HasField("high") else None
    if low is None and high is None:
        raise InvalidRequestError("clamp needs low, high or both", field="clamp")
    if low is not None and high is not None and low > high:
        raise InvalidRequestError(f"clamp needs low <= high, got {low} > {high}", field="clamp")
    return domain.Clamp(low=low, high=high)
