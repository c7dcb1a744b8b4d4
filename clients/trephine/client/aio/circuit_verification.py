"""Verifying a circuit by ablations of the real model, awaited."""

from __future__ import annotations

from typing import Any

from trephine.client.aio.circuit_queries import AsyncStoredCircuit
from trephine.client.aio.operations import AsyncOperation
from trephine.client.aio.wire import AsyncWire
from trephine.client.circuit_verification import named, request, verification
from trephine.client.decoding import decode
from trephine.client.operations import OnProgress
from trephine.client.types import CircuitVerification
from trephine.v1 import circuit_verification_pb2 as pb


class AsyncVerifiableCircuit(AsyncStoredCircuit):
    """The part of a circuit's surface that verifies it."""

    async def verify(self, *, on_progress: OnProgress | None = None, **options: Any) -> CircuitVerification:
        """What real ablations say about this circuit; `options` are those of the sync `start_verify`."""
        return await (await self.start_verify(**options)).result(on_progress=on_progress)

    async def start_verify(self, **options: Any) -> AsyncOperation[CircuitVerification]:
        """Start a verification; `options` are those of the sync client."""
        message = await self._wire.call(self._wire.circuits.VerifyCircuit, request(self.name, **options))
        return AsyncOperation(self._wire, message, verification)

    async def predict_verify(self, **options: Any) -> CircuitVerification:
        """Check a verification and say what it would take: `seconds` and `peak_extra_bytes`."""
        asked = request(self.name, validate_only=True, **options)
        message = await self._wire.call(self._wire.circuits.VerifyCircuit, asked)
        return await AsyncOperation(self._wire, message, verification).result()

    async def verifications(self) -> tuple[CircuitVerification, ...]:
        """Every verification of this circuit, newest first, without single measurements."""
        asked = pb.ListCircuitVerificationsRequest(circuit=self.name)
        found = self._wire.pages(self._wire.circuits.ListCircuitVerifications, asked)
        return tuple([decode(CircuitVerification, one) async for page in found for one in page.verifications])


async def get_verification(wire: AsyncWire, name: str) -> CircuitVerification:
    """One verification by name."""
    found = await wire.call(wire.circuits.GetCircuitVerification, named(name))
    return decode(CircuitVerification, found)
