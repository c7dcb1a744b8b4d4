"""OperationService (watching) and google.longrunning.Operations (everything else)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from google.longrunning import operations_pb2 as longrunning
from google.longrunning.operations_pb2_grpc import OperationsServicer
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty

from trephine.app.jobs.requests import REQUEST_TYPES
from trephine.app.service import Service
from trephine.domain.errors import InvalidRequestError
from trephine.domain.operations import OperationRecord, OperationState
from trephine.rpc.calls import Context
from trephine.rpc.paging import page
from trephine.rpc.results import OperationWriter
from trephine.rpc.streaming import remaining
from trephine.rpc.wire.fields import at_least, printable, resource_id
from trephine.rpc.wire.operations import metadata_to_wire, partial_to_wire
from trephine.v1 import operation_service_pb2 as pb
from trephine.v1.operation_service_pb2_grpc import OperationServiceServicer

_FILTERS = {"state": tuple(map(str, OperationState)), "method": tuple(REQUEST_TYPES)}
"""The fields that a filter names, and what each can be."""
_AND = re.compile(r"\s+AND\s+")
_LONGEST_SECONDS = 315_576_000_000
"""Of a Duration, by its own definition: about 10,000 years. Python's timedelta ends before that."""


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
        seconds = _seconds(request.timeout, "timeout") if request.HasField("timeout") else None
        # Answer a little before the caller's deadline: late, the answer would be lost.
        limits = [seconds, None if (left := remaining(context)) is None else max(left - 0.2, 0.0)]
        finite = [limit for limit in limits if limit is not None]
        record = await self._operations.wait(name, min(finite) if finite else None)
        return await self._writer.write(record)


def _seconds(given: Duration, field: str) -> float:
    """Read a time that is waited for; it may be outside of what a Duration can be, and is then refused."""
    if abs(given.seconds) > _LONGEST_SECONDS or abs(given.nanos) >= 1_000_000_000:
        raise InvalidRequestError(
            f"{field} must be a duration: at most {_LONGEST_SECONDS} seconds, and nanos below a second, "
            f"got {given.seconds} and {given.nanos}",
            field=field,
        )
    if given.seconds < 0 or given.nanos < 0:
        raise InvalidRequestError(f"{field} must not be negative", field=field)
    return given.seconds + given.nanos / 1_000_000_000


def _filters(text: str) -> dict[str, str]:
    """Read a filter. What it can only be by mistake is refused: an empty list would look like an answer."""
    wanted = dict[str, str]()
    for clause in _AND.split(text.strip()) if text.strip() else ():
        field, equals, quoted = (part.strip() for part in clause.partition("="))
        if field not in _FILTERS or not equals:
            raise _unlike(f"understands state=S and method=M, joined by AND, got {printable(text)!r}")
        value, known = quoted.strip('"'), _FILTERS[field]
        if re.search(r"\sand\s", value, re.IGNORECASE):
            raise _unlike(f"joins by AND, in capitals and once, got {printable(text)!r}")
        if value not in known:
            raise _unlike(f"knows no {field} {printable(value)!r}; {field} is one of {', '.join(known)}")
        if field in wanted:
            raise _unlike(f"names {field} twice; AND lists what is true of one operation, so name it once")
        wanted[field] = value
    return wanted


def _unlike(what: str) -> InvalidRequestError:
    return InvalidRequestError(f"filter {what}", field="filter")


def _matches(record: OperationRecord, wanted: dict[str, str]) -> bool:
    return all(str(getattr(record, field)) == value for field, value in wanted.items())
