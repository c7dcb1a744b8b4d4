"""OperationService (watching) and google.longrunning.Operations (everything else)."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.longrunning import operations_pb2 as longrunning
from google.longrunning.operations_pb2_grpc import OperationsServicer
from google.protobuf.empty_pb2 import Empty

from trephine.app.service import Service
from trephine.domain.errors import InvalidRequestError
from trephine.domain.operations import OperationRecord
from trephine.rpc.calls import Context
from trephine.rpc.paging import page
from trephine.rpc.results import OperationWriter
from trephine.rpc.streaming import remaining
from trephine.rpc.wire.fields import at_least, printable, resource_id
from trephine.rpc.wire.operations import metadata_to_wire, partial_to_wire
from trephine.v1 import operation_service_pb2 as pb
from trephine.v1.operation_service_pb2_grpc import OperationServiceServicer

_FILTERS = ("state", "method")


class OperationServicer(OperationServiceServicer):
    """Watching operations."""

    def __init__(self, service: Service, operations: OperationWriter) -> None:
        self._operations = service.operations
        self._writer = operations

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.WatchResponse]:
        """Stream what happens to an operation until it is done; leaving cancels nothing."""
        name = resource_id(request.name, "operations")
        after = at_least(request.after_sequence, 0, "after_sequence")
        async for event in self._operations.watch(name, after):
            yield pb.WatchResponse(
                operation=await self._writer.write(event.record),
                metadata=metadata_to_wire(event.record),
                heartbeat=event.heartbeat,
                partial_circuit=partial_to_wire(event.record),
            )


class LongrunningServicer(OperationsServicer):  # type: ignore[misc]  # googleapis ships no types
    """google.longrunning.Operations."""

    def __init__(self, service: Service, operations: OperationWriter) -> None:
        self._operations = service.operations
        self._writer = operations

    async def GetOperation(
        self, request: longrunning.GetOperationRequest, context: Context
    ) -> longrunning.Operation:
        """Describe an operation."""
        return await self._writer.write(self._operations.get(resource_id(request.name, "operations")))

    async def ListOperations(
        self, request: longrunning.ListOperationsRequest, context: Context
    ) -> longrunning.ListOperationsResponse:
        """List operations, newest first; filter with `state=running`, `method=DiscoverCircuit`, `AND`."""
        if request.name not in ("", "operations"):
            raise InvalidRequestError("name must be operations or empty", field="name")
        wanted = _filters(request.filter)
        found = page(
            [record for record in self._operations.list() if _matches(record, wanted)],
            size=request.page_size,
            token=request.page_token,
            question=("ListOperations", request.filter),
            key=lambda record: record.id,
        )
        operations = await self._writer.write_all(found.items)
        return longrunning.ListOperationsResponse(operations=operations, next_page_token=found.next_token)

    async def CancelOperation(self, request: longrunning.CancelOperationRequest, context: Context) -> Empty:
        """End the work within one quantum."""
        await self._operations.cancel(resource_id(request.name, "operations"))
        return Empty()

    async def DeleteOperation(self, request: longrunning.DeleteOperationRequest, context: Context) -> Empty:
        """Forget a finished operation."""
        self._operations.delete(resource_id(request.name, "operations"))
        return Empty()

    async def WaitOperation(
        self, request: longrunning.WaitOperationRequest, context: Context
    ) -> longrunning.Operation:
        """Answer once it is done or the time is over, with what it is then."""
        name = resource_id(request.name, "operations")
        seconds = request.timeout.ToTimedelta().total_seconds() if request.HasField("timeout") else None
        if seconds is not None and seconds < 0:
            raise InvalidRequestError("timeout must not be negative", field="timeout")
        # Answer a little before the caller's deadline: late, the answer would be lost.
        limits = [seconds, None if (left := remaining(context)) is None else max(left - 0.2, 0.0)]
        finite = [limit for limit in limits if limit is not None]
        record = await self._operations.wait(name, min(finite) if finite else None)
        return await self._writer.write(record)


def _filters(text: str) -> dict[str, str]:
    wanted = {}
    for clause in filter(None, text.split(" AND ")):
        field, equals, value = (part.strip() for part in clause.partition("="))
        if field not in _FILTERS or not equals:
            raise InvalidRequestError(
                f"filter understands state=S and method=M joined by AND, got {printable(text)!r}",
                field="filter",
            )
        wanted[field] = value.strip('"')
    return wanted


def _matches(record: OperationRecord, wanted: dict[str, str]) -> bool:
    return all(str(getattr(record, field)) == value for field, value in wanted.items())
