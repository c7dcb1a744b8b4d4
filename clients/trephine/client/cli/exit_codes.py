"""What a command's exit status says. The same for every command."""

from __future__ import annotations

from enum import IntEnum

from trephine.client.errors import (
    AuditorFailedError,
    BaselineInvalidError,
    ErrorKind,
    GateMissedError,
    NothingToShipError,
    TrephineError,
)


class ExitCode(IntEnum):
    """The exit status of a command."""

    PASS = 0
    """Nothing is wrong. An audit that does not apply to the model ends so, too."""
    INTERNAL = 1
    """Something broke, here or on the server."""
    USAGE = 2
    """The command, its arguments or the state it meets are wrong; the message says what to change."""
    FINDINGS = 3
    """Findings at or above the threshold; a folder that does not verify."""
    INCONCLUSIVE = 4
    """It cannot be told, also of a part beside accepted findings, or nothing could ship. Never a pass."""
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


def exit_code_of(error: TrephineError) -> ExitCode:
    """The status of a command that ended with this error."""
    if isinstance(error, BaselineInvalidError):
        return ExitCode.BASELINE_INVALID
    if isinstance(error, NothingToShipError):
        return ExitCode.INCONCLUSIVE
    if isinstance(error, _OURS):
        return ExitCode.INTERNAL
    return ExitCode.USAGE if error.kind in _USAGE else ExitCode.INTERNAL
