"""From a failed RPC or operation to the error that it means."""

from __future__ import annotations

import re
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from trephine.client import errors

_WITHOUT_DETAILS: dict[grpc.StatusCode, type[errors.TrephineError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: errors.ResourceNotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExistsError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.MessageTooLargeError,
    grpc.StatusCode.UNIMPLEMENTED: errors.UnsupportedOptionError,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlinePassedError,
    grpc.StatusCode.CANCELLED: errors.CancelledByCallerError,
    grpc.StatusCode.UNAVAILABLE: errors.ServerUnreachableError,
    grpc.StatusCode.UNAUTHENTICATED: errors.UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: errors.PathDeniedError,
    grpc.StatusCode.DATA_LOSS: errors.HashMismatchError,
}
"""Statuses that a transport or a proxy raises on its own, without an ErrorInfo."""
_ADVICE = {
    grpc.StatusCode.UNAVAILABLE: ": the server has ended or is not there yet; connect() again, which starts "
    "a local one where none is. Its operations go on with the next",
    grpc.StatusCode.RESOURCE_EXHAUSTED: ": one call carries 8 MiB at most; send less at once",
}
"""What to do about those whose own words do not say it."""
_HANDSHAKES = (
    (
        "WRONG_VERSION_NUMBER",
        "the server there speaks without TLS, and this end with it. Where that is meant (--insecure-listen), "
        "connect with insecure_connect; on loopback leave out root_certificates and certificate_name",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "the server's certificate is of no authority that is trusted here, or has expired. Give a PEM file "
        "of its authority, or the self-signed certificate itself, as root_certificates",
    ),
    (
        "Hostname Verification",
        "the server's certificate is for another host than the address names. Connect to the host that it is "
        "for, or give that host's name as certificate_name",
    ),
    (
        "andshake",
        "the TLS handshake failed. Check that the server has a certificate (--tls-cert), that nothing "
        "in between ends TLS, and that root_certificates are those of its authority",
    ),
)
"""What gRPC says of an unavailable server when somebody is there, and what to check."""
_HUNG_UP = re.compile(r"failed to connect to all addresses.* ipv[46]:\S+: Socket closed")
"""Of a connection without TLS that was accepted and closed before the first answer."""
_MAY_WANT_TLS = (
    "who listens there closed the connection before it answered. A server with a certificate does that to "
    "connections without TLS: give root_certificates, or certificate_name where its authority is public"
)


def error_of_call(failure: grpc.RpcError) -> errors.TrephineError:
    """The error that a failed call means. `failure` is what a sync or an aio stub raised."""
    status = _rich_status(failure)
    if status is not None:
        return error_of_status(status)
    code = failure.code() if hasattr(failure, "code") else grpc.StatusCode.UNKNOWN
    details = failure.details() if hasattr(failure, "details") else str(failure)
    said = details or "no details"
    if code is grpc.StatusCode.UNAVAILABLE and (advice := _handshake_advice(said)):
        return errors.HandshakeFailedError(f"{said} ({code.name}): {advice}", context={"status": code.name})
    return _WITHOUT_DETAILS.get(code, errors.InternalError)(
        f"{said} ({code.name}){_ADVICE.get(code, '')}", context={"status": code.name}
    )


def error_of_status(status: status_pb2.Status) -> errors.TrephineError:
    """The error in a `google.rpc.Status`: its ErrorInfo names the reason, BadRequest the field."""
    info = _detail(status, error_details_pb2.ErrorInfo)
    bad = _detail(status, error_details_pb2.BadRequest)
    field = bad.field_violations[0].field if bad and bad.field_violations else ""
    if info is None:
        code = next((c for c in grpc.StatusCode if c.value[0] == status.code), grpc.StatusCode.UNKNOWN)
        return _WITHOUT_DETAILS.get(code, errors.InternalError)(status.message, field=field)
    return errors.error_type(info.reason)(status.message, field=field, context=dict(info.metadata))


def _handshake_advice(details: str) -> str | None:
    for words, advice in _HANDSHAKES:
        if words in details:
            return advice
    return _MAY_WANT_TLS if _HUNG_UP.search(details) else None


def _rich_status(failure: grpc.RpcError) -> status_pb2.Status | None:
    if not hasattr(failure, "trailing_metadata"):
        return None
    try:
        status: status_pb2.Status | None = rpc_status.from_call(failure)
    except ValueError:
        # Code and details disagree with the rich status: trust the plain ones, they are the transport's.
        return None
    return status


def _detail(status: status_pb2.Status, kind: Any) -> Any:
    for packed in status.details:
        if packed.Is(kind.DESCRIPTOR):
            detail = kind()
            packed.Unpack(detail)
            return detail
    return None
