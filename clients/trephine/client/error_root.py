"""The root of the error tree, its kinds, and the classes by reason."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import ClassVar


class ErrorKind(StrEnum):
    """What sort of failure it is."""

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
    """Try again: the server or an engine was lost."""
    UNAUTHENTICATED = "unauthenticated"
    DENIED = "denied"
    DATA_LOSS = "data_loss"
    """Stored or transferred bytes are not what they should be."""
    INTERNAL = "internal"


_BY_REASON: dict[str, type[TrephineError]] = {}


class TrephineError(Exception):
    """Root of the tree. Catch it to catch everything that this package raises on purpose."""

    kind: ClassVar[ErrorKind] = ErrorKind.INTERNAL
    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, /, *, field: str = "", context: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.context: dict[str, str] = dict(context or {})
        self.field = field or self.context.get("field", "")

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "reason" in cls.__dict__:
            _BY_REASON[cls.reason] = cls


def error_type(reason: str) -> type[TrephineError]:
    """The error class of a reason; an unknown one is an `InternalError`."""
    return _BY_REASON.get(reason, _BY_REASON["INTERNAL"])


def error_types() -> tuple[type[TrephineError], ...]:
    """Every concrete error class."""
    return tuple(_BY_REASON.values())
