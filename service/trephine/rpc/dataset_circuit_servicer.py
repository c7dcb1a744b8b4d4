"""The part of CircuitService that finds circuits over datasets."""

from __future__ import annotations

from google.longrunning.operations_pb2 import Operation

from trephine.app.circuits.dataset_circuits import COLLECTION
from trephine.app.service import Service
from trephine.rpc.calls import Context
from trephine.rpc.paging import page
from trephine.rpc.results import OperationWriter, validated
from trephine.rpc.wire.dataset_circuits import (
    checked_to_wire,
    dataset_circuit_to_wire,
    discover_dataset_from_wire,
)
from trephine.rpc.wire.fields import resource_id
from trephine.v1 import dataset_circuits_pb2 as pb

_METHOD = "DiscoverDatasetCircuit"


class DatasetCircuitCalls:
    """Methods of `CircuitServicer` on datasets."""

    def __init__(self, service: Service, operations: OperationWriter) -> None:
        self._found = service.dataset_circuits
        self._starter = operations

    async def DiscoverDatasetCircuit(
        self, request: pb.DiscoverDatasetCircuitRequest, context: Context
    ) -> Operation:
        """Find the circuit of a behaviour, or only check and predict."""
        wanted = discover_dataset_from_wire(request)
        if request.validate_only:
            info, cost, checked = await self._found.predict(wanted)
            return validated(_METHOD, checked_to_wire(wanted, info, cost, checked))
        return await self._starter.start(_METHOD, wanted, request.request_id)

    async def GetDatasetCircuit(
        self, request: pb.GetDatasetCircuitRequest, context: Context
    ) -> pb.DatasetCircuit:
        """Read what was found, whole."""
        return dataset_circuit_to_wire(await self._found.get(resource_id(request.name, COLLECTION)))

    async def ListDatasetCircuits(
        self, request: pb.ListDatasetCircuitsRequest, context: Context
    ) -> pb.ListDatasetCircuitsResponse:
        """List what was found, newest first."""
        found = page(
            await self._found.list(),
            size=request.page_size,
            token=request.page_token,
            question=("ListDatasetCircuits",),
            key=lambda stored: stored.name,
        )
        listed = [dataset_circuit_to_wire(stored, whole=False) for stored in found.items]
        return pb.ListDatasetCircuitsResponse(dataset_circuits=listed, next_page_token=found.next_token)
