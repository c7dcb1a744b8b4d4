"""What a command's exit status says. The same for every command."""

from __future__ import annotations

from trephine.client.errors import (
    AuditorFailedError,
    ErrorKind,
    GateMissedError,
    NothingToShipError,
    ServiceMissingError,
    TrephineError,
)

PASS = 0
INTERNAL = 1
"""Something broke here or on the server, or a check of ours failed."""
USAGE = 2
"""The command, its arguments or the state it meets are wrong; the message says what to change."""
FINDINGS = 3
INCONCLUSIVE = 4
BASELINE_INVALID = 5
INTERRUPTED = 130
"""Ctrl-C, as every shell expects it."""

_OURS = (AuditorFailedError, GateMissedError)
_USAGE = frozenset(
    {
        ErrorKind.INVALID,
        ErrorKind.NOT_FOUND,
        ErrorKind.CONFLICT,
        ErrorKind.PRECONDITION,
        ErrorKind.UNSUPPORTED,
        ErrorKind.UNAUTHENTICATED,
        ErrorKind.DENIED,
    }
)


def exit_code_of(error: TrephineError) -> int:
    """The status of a command that ended with this error."""
    if isinstance(error, NothingToShipError):
        return INCONCLUSIVE
    if isinstance(error, _OURS):
        return INTERNAL
    if isinstance(error, ServiceMissingError):
        return USAGE
    return USAGE if error.kind in _USAGE else INTERNAL
