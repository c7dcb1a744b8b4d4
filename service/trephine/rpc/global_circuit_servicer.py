"""The part of CircuitService that finds global circuits; they are read as circuits are."""

from __future__ import annotations

from google.longrunning.operations_pb2 import Operation

from trephine.app.service import Service
from trephine.rpc.calls import Context
from trephine.rpc.results import OperationWriter, validated
from trephine.rpc.wire.global_circuits import checked_to_wire, discover_global_from_wire
from trephine.v1 import global_circuits_pb2 as pb

_METHOD = "DiscoverGlobalCircuit"


class GlobalCircuitCalls:
    """Methods of `CircuitServicer` on circuits that no single prompt decides."""

    def __init__(self, service: Service, operations: OperationWriter) -> None:
        self._global = service.global_circuits
        self._writer = operations

    async def DiscoverGlobalCircuit(
        self, request: pb.DiscoverGlobalCircuitRequest, context: Context
    ) -> Operation:
        """Find edges that hold over many texts, or only check and predict."""
        wanted = discover_global_from_wire(request)
        if request.validate_only:
            info, spanned, cost, checked = await self._global.predict(wanted)
            return validated(_METHOD, checked_to_wire(wanted, info, spanned, cost, checked))
        return await self._writer.start(_METHOD, wanted, request.request_id)
