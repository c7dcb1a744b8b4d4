"""The part of CircuitService that verifies circuits."""

from __future__ import annotations

from google.longrunning.operations_pb2 import Operation

from trephine.app.service import Service
from trephine.rpc.calls import Context
from trephine.rpc.paging import Paging, page
from trephine.rpc.results import OperationWriter, validated
from trephine.rpc.wire.circuit_verification import predicted_to_wire, verification_to_wire, verify_from_wire
from trephine.rpc.wire.fields import resource_id
from trephine.v1 import circuit_verification_pb2 as pb

_LISTED = Paging(default=20, largest=50)
"""A report says in words how each figure was measured, some 40 kB; a message holds 8 MiB."""


class CircuitVerification:
    """Methods of `CircuitServicer` that ablate what a circuit names."""

    def __init__(self, service: Service, operations: OperationWriter) -> None:
        self._verifications = service.circuit_verifications
        self._verifying = operations

    async def VerifyCircuit(self, request: pb.VerifyCircuitRequest, context: Context) -> Operation:
        """Verify a circuit by ablations of the real model, or only check and predict."""
        wanted = verify_from_wire(request)
        if request.validate_only:
            stored, info, cost = await self._verifications.predict(wanted)
            return validated("VerifyCircuit", predicted_to_wire(wanted, stored, info, cost))
        return await self._verifying.start("VerifyCircuit", wanted, request.request_id)

    async def GetCircuitVerification(
        self, request: pb.GetCircuitVerificationRequest, context: Context
    ) -> pb.CircuitVerification:
        """Read a finished verification."""
        name = resource_id(request.name, "circuitVerifications")
        return verification_to_wire(await self._verifications.get(name))

    async def ListCircuitVerifications(
        self, request: pb.ListCircuitVerificationsRequest, context: Context
    ) -> pb.ListCircuitVerificationsResponse:
        """List a circuit's verifications, newest first, without single measurements."""
        circuit = resource_id(request.circuit, "circuits", "circuit")
        found = page(
            await self._verifications.list(circuit),
            size=request.page_size,
            token=request.page_token,
            question=("ListCircuitVerifications", circuit),
            rule=_LISTED,
            key=lambda stored: stored.name,
        )
        return pb.ListCircuitVerificationsResponse(
            verifications=[verification_to_wire(one, measurements=False) for one in found.items],
            next_page_token=found.next_token,
        )
