"""The root of the error tree, its kinds, and how an error crosses a process border.

An error carries a `kind` (what sort of failure; the edge maps it to a status), a `reason`
(UPPER_SNAKE, stable, for programs), a message that says what to do, and flat `context` values.
Errors cross process borders as `(reason, message, context)` and are rebuilt by `error_from`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class ErrorKind(StrEnum):
    """What sort of failure it is; the total map to gRPC status lives in `trephine.rpc.errors`."""

    INVALID = "invalid"
    """The request is wrong whatever the state of the service; change it."""
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    """It exists already, or the same request id was used for something else."""
    PRECONDITION = "precondition"
    """The request is well formed but the state forbids it; change the state."""
    EXHAUSTED = "exhausted"
    """Out of memory, disk, queue or budget; ask for less or later."""
    UNSUPPORTED = "unsupported"
    """The language can say it, this release cannot do it; the field is named."""
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    UNAVAILABLE = "unavailable"
    """Try again: an engine was lost or the server drains."""
    UNAUTHENTICATED = "unauthenticated"
    DENIED = "denied"
    DATA_LOSS = "data_loss"
    """Stored or uploaded bytes are not what they should be."""
    INTERNAL = "internal"


ContextValue = str | int | float | bool

_BY_REASON: dict[str, type[TrephineError]] = {}


class TrephineError(Exception):
    """Root of the tree. Subclasses set `kind` and `reason`; instances add a message and context."""

    kind: ClassVar[ErrorKind] = ErrorKind.INTERNAL
    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, /, **context: ContextValue) -> None:
        super().__init__(message)
        self.message = message
        self.context: dict[str, ContextValue] = context

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "reason" in cls.__dict__:
            if cls.reason in _BY_REASON:
                raise TypeError(f"two errors share the reason {cls.reason}")
            _BY_REASON[cls.reason] = cls

    def with_field(self, field: str) -> TrephineError:
        """Return this error with the request field that caused it, unless one is named already."""
        self.context.setdefault("field", field)
        return self


def error_from(reason: str, message: str, context: dict[str, ContextValue]) -> TrephineError:
    """Rebuild an error that crossed a process border; an unknown reason becomes an `InternalError`."""
    return _BY_REASON.get(reason, _BY_REASON["INTERNAL"])(message, **context)


def error_types() -> tuple[type[TrephineError], ...]:
    """Every concrete error type, for the tests that hold the edge's tables total."""
    return tuple(_BY_REASON.values())
