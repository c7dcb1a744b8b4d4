"""Verifying a circuit by ablations of the real model."""

from __future__ import annotations

from typing import Any

from trephine.client.aio.circuit_queries import AsyncStoredCircuit
from trephine.client.aio.operations import AsyncOperation
from trephine.client.aio.wire import AsyncWire
from trephine.client.circuit_verification_requests import named, request
from trephine.client.decoding import decode
from trephine.client.results import circuit_verification_of
from trephine.client.types import CircuitVerification
from trephine.client.watches import OnProgress
from trephine.v1 import circuit_verification_pb2 as pb


class AsyncVerifiableCircuit(AsyncStoredCircuit):
    """The part of a circuit's surface that verifies it."""

    async def verify(self, *, on_progress: OnProgress | None = None, **options: Any) -> CircuitVerification:
        """What real ablations say about this circuit.

        Args:
            on_progress: Called with every step.
            options: Those of `start_verify`.
        """
        started = await self.start_verify(**options)
        return await started.result(on_progress=on_progress)

    async def start_verify(self, **options: Any) -> AsyncOperation[CircuitVerification]:
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
        message = await self._wire.call(self._wire.circuits.VerifyCircuit, request(self.name, **options))
        return AsyncOperation(self._wire, message, circuit_verification_of)

    async def predict_verify(self, **options: Any) -> CircuitVerification:
        """Check a verification and say what it would take: `seconds` and `peak_extra_bytes`."""
        asked = request(self.name, validate_only=True, **options)
        message = await self._wire.call(self._wire.circuits.VerifyCircuit, asked)
        return await AsyncOperation(self._wire, message, circuit_verification_of).result()

    async def verifications(self) -> tuple[CircuitVerification, ...]:
        """Every verification of this circuit, newest first, without single measurements."""
        asked = pb.ListCircuitVerificationsRequest(circuit=self.name)
        found = self._wire.pages(self._wire.circuits.ListCircuitVerifications, asked)
        return tuple([decode(CircuitVerification, one) async for page in found for one in page.verifications])


async def get_verification(wire: AsyncWire, name: str) -> CircuitVerification:
    """One verification by name."""
    return circuit_verification_of(await wire.call(wire.circuits.GetCircuitVerification, named(name)))
