"""Errors that only the client knows: they never came over the wire."""

from __future__ import annotations

from trephine.client.error_root import ErrorKind, TrephineError

CLOSED = "this connection was closed; connect() opens another"
"""What a call after closing is told, on both surfaces."""


class ServerUnreachableError(TrephineError):
    """Nobody answers at the server's address, or the connection broke and did not come back."""

    kind = ErrorKind.UNAVAILABLE
    reason = "SERVER_UNREACHABLE"


class HandshakeFailedError(ServerUnreachableError):
    """Somebody listens at the server's address, and the two ends do not agree on TLS or a certificate."""

    reason = "HANDSHAKE_FAILED"


class ConnectionClosedError(TrephineError):
    """A call on a connection that was closed here."""

    kind = ErrorKind.PRECONDITION
    reason = "CONNECTION_CLOSED"


class ServerStartError(TrephineError):
    """A local server could not be started; the message holds the end of its log."""

    kind = ErrorKind.UNAVAILABLE
    reason = "SERVER_START_FAILED"


class ServiceMissingError(TrephineError):
    """The service is not installed here, so no local server can be started."""

    kind = ErrorKind.PRECONDITION
    reason = "SERVICE_MISSING"


class SignatureUncheckedError(TrephineError):
    """A signature that cannot be checked here, for want of a package; the message says what to install."""

    kind = ErrorKind.PRECONDITION
    reason = "SIGNATURE_UNCHECKED"


class LocalFileError(TrephineError):
    """A file or folder of this machine that cannot be read or written as asked."""

    kind = ErrorKind.PRECONDITION
    reason = "LOCAL_FILE"


class BaselineInvalidError(TrephineError):
    """A file of accepted findings that cannot be relied on; it never makes a build green."""

    kind = ErrorKind.PRECONDITION
    reason = "BASELINE_INVALID"
