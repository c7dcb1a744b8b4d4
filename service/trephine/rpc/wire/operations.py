"""Operations: `google.longrunning.Operation` with `OperationMetadata`."""

from __future__ import annotations

from google.longrunning.operations_pb2 import Operation
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from trephine.domain.errors import CancelledByCallerError, error_from
from trephine.domain.operations import OperationRecord, OperationState
from trephine.rpc.errors import status_of
from trephine.rpc.wire.common import progress_to_wire
from trephine.rpc.wire.fields import clean, qualified
from trephine.v1 import circuit_queries_pb2 as queries_pb
from trephine.v1 import operation_service_pb2 as pb


def metadata_to_wire(record: OperationRecord) -> pb.OperationMetadata:
    """Write where an operation is."""
    return pb.OperationMetadata(
        method=clean(record.method),
        state=record.state.value,
        progress=None if record.progress is None else progress_to_wire(record.progress),
        attempts=record.attempts,
        create_time=clean(record.create_time),
        end_time=clean(record.end_time or ""),
        sequence=record.sequence,
        result=clean(record.result or ""),
    )


def operation_to_wire(record: OperationRecord, response: Message | None) -> Operation:
    """Write an operation; `response` is the message of a succeeded one, None if it is not done or failed."""
    operation = Operation(
        name=qualified("operations", record.id),
        done=record.state.is_final,
        metadata=packed(metadata_to_wire(record)),
    )
    if record.failure is not None:
        failure = record.failure
        error = error_from(failure.reason, failure.message, dict(failure.context))
        operation.error.CopyFrom(status_of(error))
    elif record.state is OperationState.CANCELLED:
        operation.error.CopyFrom(status_of(CancelledByCallerError("the operation was cancelled")))
    elif response is not None:
        operation.response.CopyFrom(packed(response))
    return operation


def partial_to_wire(record: OperationRecord) -> queries_pb.PartialCircuit | None:
    """Write the growing result of an operation that runs, where there is one."""
    partial = record.progress.partial if record.progress is not None else None
    if partial is None or record.state.is_final:
        return None
    return queries_pb.PartialCircuit(
        nodes=[
            queries_pb.PartialNode(
                layer=one.layer,
                position=one.position,
                feature=one.feature,
                influence=one.influence,
                replacement=clean(one.replacement),
            )
            for one in partial.nodes
        ],
        edges=[
            queries_pb.PartialEdge(source=one.source, target=one.target, weight=one.weight)
            for one in partial.edges
        ],
        inside=partial.inside,
        expanded=partial.expanded,
    )


def packed(message: Message) -> AnyMessage:
    """Pack a message into an Any."""
    box = AnyMessage()
    box.Pack(message)
    return box
