"""GGUF files of exports."""

from __future__ import annotations

from collections.abc import Iterable

from trephine.domain import exports as domain
from trephine.domain.errors import InvalidRequestError
from trephine.rpc.wire.fields import clean
from trephine.v1 import gguf_pb2 as pb

_TYPES: dict[domain.GgufType, pb.GgufType.ValueType] = {
    "q8_0": pb.GGUF_TYPE_Q8_0,
    "q5_1": pb.GGUF_TYPE_Q5_1,
    "q5_0": pb.GGUF_TYPE_Q5_0,
    "q4_1": pb.GGUF_TYPE_Q4_1,
    "q4_0": pb.GGUF_TYPE_Q4_0,
}


def gguf_from_wire(types: Iterable[pb.GgufType.ValueType]) -> tuple[domain.GgufType, ...]:
    """Read which files are asked for.

    Raises:
        InvalidRequestError: If one of them is none.
    """
    known = {number: name for name, number in _TYPES.items()}
    asked = list(types)
    if unknown := [number for number in asked if number not in known]:
        raise InvalidRequestError(
            f"there is no GGUF type number {unknown[0]}; choose from {', '.join(domain.GGUF_TYPES)}",
            field="gguf",
        )
    return tuple(known[number] for number in asked)


def quantised_to_wire(copy: domain.QuantisedCopy) -> pb.QuantisedCopy:
    """Write a file's figures; what was not measured stays unset."""
    return pb.QuantisedCopy(
        kind=_TYPES[copy.kind],
        file=clean(copy.file),
        size=copy.size,
        kl=copy.kl,
        edit_kl=copy.edit_kl,
        recovery=copy.recovery,
        kl_firing=copy.kl_firing,
        edit_kl_firing=copy.edit_kl_firing,
        recovery_firing=copy.recovery_firing,
        quantisation_kl=copy.quantisation_kl,
        perplexity_ratio=copy.perplexity_ratio,
        top1_agreement=copy.top1_agreement,
    )
