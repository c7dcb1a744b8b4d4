"""Errors on the wire: one total table from kinds to status codes, with `google.rpc` details (AIP-193)."""

from __future__ import annotations

from datetime import timedelta
from typing import NoReturn

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, ResourceInfo, RetryInfo
from google.rpc.status_pb2 import Status

from trephine.domain.errors import ErrorKind, QueueFullError, TrephineError

DOMAIN = "trephine"
DETAILS_KEY = "grpc-status-details-bin"
RETRY_AFTER = timedelta(seconds=1)
_MESSAGE_BYTES, _VALUE_BYTES, _CONTEXT_ENTRIES = 1024, 256, 16
"""Trailing metadata must stay below gRPC's 8 KiB, in which the message counts twice."""

CODES: dict[ErrorKind, grpc.StatusCode] = {
    ErrorKind.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorKind.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    ErrorKind.CONFLICT: grpc.StatusCode.ALREADY_EXISTS,
    ErrorKind.PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorKind.EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorKind.UNSUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    ErrorKind.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
    ErrorKind.CANCELLED: grpc.StatusCode.CANCELLED,
    ErrorKind.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    ErrorKind.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    ErrorKind.DENIED: grpc.StatusCode.PERMISSION_DENIED,
    ErrorKind.DATA_LOSS: grpc.StatusCode.DATA_LOSS,
    ErrorKind.INTERNAL: grpc.StatusCode.INTERNAL,
}


def code_of(error: TrephineError) -> grpc.StatusCode:
    """The status code of an error."""
    return CODES[error.kind]


def status_of(error: TrephineError) -> Status:
    """Write an error: code, message, exactly one ErrorInfo, and what else its kind calls for."""
    number: int = code_of(error).value[0]
    status = Status(code=number, message=_cut(error.message, _MESSAGE_BYTES))
    for detail in _details(error):
        status.details.add().Pack(detail)
    return status


async def abort(
    context: grpc.aio.ServicerContext[Message, Message],
    error: TrephineError,
    trailers: tuple[tuple[str, str | bytes], ...] = (),
) -> NoReturn:
    """End a call with an error; the status travels in the trailing metadata.

    Raises:
        grpc.aio.AbortError: Always.
    """
    status = status_of(error)
    details = (DETAILS_KEY, status.SerializeToString())
    await context.abort(code_of(error), status.message, trailing_metadata=(details, *trailers))


def _details(error: TrephineError) -> list[Message]:
    context = {_cut(key, 64): _cut(str(value), _VALUE_BYTES) for key, value in list(error.context.items())}
    entries = dict(list(context.items())[:_CONTEXT_ENTRIES])
    details: list[Message] = [ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=entries)]
    if "field" in context:
        violation = BadRequest.FieldViolation(
            field=context["field"], description=_cut(error.message, _VALUE_BYTES)
        )
        details.append(BadRequest(field_violations=[violation]))
    if error.kind is ErrorKind.UNAVAILABLE or isinstance(error, QueueFullError):
        delay = Duration()
        delay.FromTimedelta(RETRY_AFTER)
        details.append(RetryInfo(retry_delay=delay))
    if error.kind is ErrorKind.NOT_FOUND:
        details.append(_resource(context))
    return details


def _resource(context: dict[str, str]) -> ResourceInfo:
    name = next((context[key] for key in ("resource", "name", "model", "auditor") if key in context), "")
    return ResourceInfo(resource_type=name.partition("/")[0] if "/" in name else "", resource_name=name)


def _cut(text: str, limit: int) -> str:
    """At most `limit` bytes of text that UTF-8 can hold."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return data.decode()
    return data[: limit - 3].decode("utf-8", "ignore") + "…"
