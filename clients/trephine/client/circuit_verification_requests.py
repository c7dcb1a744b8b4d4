"""Requests to verify circuits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trephine.client.errors import InvalidRequestError
from trephine.client.requests import fresh_id, resource
from trephine.client.sendable import listed, sendable
from trephine.client.types import Substitute
from trephine.v1 import circuit_verification_pb2 as pb
from trephine.v1 import interventions_pb2


@sendable
def named(name: str) -> pb.GetCircuitVerificationRequest:
    """Ask for one verification."""
    return pb.GetCircuitVerificationRequest(name=resource("circuitVerifications", name))


@sendable
def request(
    circuit: str,
    *,
    model: str = "",
    substitutes: Sequence[Substitute | str] = (),
    error_term: str = "live",
    supernodes: Sequence[Sequence[int]] = (),
    request_id: str | None = None,
    validate_only: bool = False,
    **options: Any,
) -> pb.VerifyCircuitRequest:
    """Verify a circuit. `options` are fields of the request; None leaves one unset.

    Raises:
        InvalidRequestError: If an ablation or an error term is unknown.
    """
    return pb.VerifyCircuitRequest(
        circuit=circuit,
        model=resource("models", model) if model else "",
        substitutes=[_number(pb.Substitute, "SUBSTITUTE", one, "substitutes") for one in substitutes],
        error_term=_number(interventions_pb2.ErrorTerm, "ERROR_TERM", error_term, "error_term"),
        supernodes=[pb.NodeSet(nodes=listed(nodes, "supernodes")) for nodes in supernodes],
        request_id=fresh_id(request_id),
        validate_only=validate_only,
        **{name: value for name, value in options.items() if value is not None},
    )


def _number(kind: Any, prefix: str, value: str, field: str) -> Any:
    names = tuple(kind.DESCRIPTOR.values_by_name)[1:]
    name = f"{prefix}_{str(value).upper()}"
    if name not in names:
        known = ", ".join(one.removeprefix(f"{prefix}_").lower() for one in names)
        raise InvalidRequestError(f"{field} is one of {known}, not {value!r}", field=field)
    return kind.Value(name)
