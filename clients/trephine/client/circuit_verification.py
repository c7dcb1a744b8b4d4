"""Verifying a circuit by ablations of the real model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trephine.client.circuit_queries import StoredCircuit
from trephine.client.decoding import decode
from trephine.client.errors import InvalidRequestError
from trephine.client.operations import OnProgress, Operation
from trephine.client.paging import pages
from trephine.client.requests import fresh_id, resource
from trephine.client.sendable import sendable
from trephine.client.types import CircuitVerification, Substitute
from trephine.client.wire import Wire
from trephine.v1 import circuit_verification_pb2 as pb
from trephine.v1 import interventions_pb2


class VerifiableCircuit(StoredCircuit):
    """The part of a circuit's surface that verifies it."""

    def verify(self, *, on_progress: OnProgress | None = None, **options: Any) -> CircuitVerification:
        """What real ablations say about this circuit.

        Args:
            on_progress: Called with every step.
            options: Those of `start_verify`.
        """
        return self.start_verify(**options).result(on_progress=on_progress)

    def start_verify(self, **options: Any) -> Operation[CircuitVerification]:
        """Start a verification.

        Args:
            options: `node_threshold` (unset 0.8) and `edge_threshold` (0.98) prune the graph to the circuit
                that is verified; unset, one that was pruned before is verified whole. `supernodes` are groups
                of node indices (unset: the circuit's own groups);
                `counterfactual` is a prompt of as many tokens, for resample ablation; `substitutes` are of
                zero, mean and resample; `error_term` is live, frozen or drop; `nodes` (120), `groups` (24),
                `depth_nodes` (40), `random_circuits` (20), `adversary_steps` (8), `control` (True),
                `bootstrap` (1000), `seed` (0), `model`, `request_id`.
        """
        message = self._wire.call(self._wire.circuits.VerifyCircuit, request(self.name, **options))
        return Operation(self._wire, message, verification)

    def predict_verify(self, **options: Any) -> CircuitVerification:
        """Check a verification and say what it would take: `seconds` and `peak_extra_bytes`."""
        asked = request(self.name, validate_only=True, **options)
        message = self._wire.call(self._wire.circuits.VerifyCircuit, asked)
        return Operation(self._wire, message, verification).result()

    def verifications(self) -> tuple[CircuitVerification, ...]:
        """Every verification of this circuit, newest first, without single measurements."""
        asked = pb.ListCircuitVerificationsRequest(circuit=self.name)
        found = pages(self._wire, self._wire.circuits.ListCircuitVerifications, asked)
        return tuple(decode(CircuitVerification, one) for page in found for one in page.verifications)


def get_verification(wire: Wire, name: str) -> CircuitVerification:
    """One verification by name."""
    return decode(CircuitVerification, wire.call(wire.circuits.GetCircuitVerification, named(name)))


def verification(message: Any) -> CircuitVerification:
    """A finished verification."""
    return decode(CircuitVerification, message)


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
        supernodes=[pb.NodeSet(nodes=nodes) for nodes in supernodes],
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
