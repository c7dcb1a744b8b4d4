"""What becomes of exceptions that are no typed error yet."""

from __future__ import annotations

from typing import Any

from trephine.domain.disk import why_no_room
from trephine.domain.errors import DiskFullError, InternalError, OverBudgetError, TrephineError
from trephine.domain.frames import frames_of

_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def typed(error: Exception, command: str) -> TrephineError:
    """Turn whatever a handler raised into an error that may cross the border.

    The text of an unexpected exception stays in the log's reach: it could hold a prompt.
    """
    if isinstance(error, TrephineError):
        return error
    if is_memory_error(error):
        return OverBudgetError(
            f"{command} ran out of memory; ask for fewer rows, tokens or nodes", command=command
        )
    if isinstance(error, OSError) and (why := why_no_room(error)):
        return DiskFullError(f"{why}; make room and try again")
    return InternalError(
        f"{command} failed on a defect of the engine; its log holds the trace",
        command=command,
        exception=type(error).__name__,
    )


def is_memory_error(error: Exception) -> bool:
    """True for Python's, torch's CPU and torch's accelerator ways to say that memory is out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in _NO_MEMORY)


def is_fatal(error: Exception) -> bool:
    """True if the accelerator is unusable for the rest of this process."""
    return type(error).__name__ == "AcceleratorError" and not is_memory_error(error)


def describe(error: Exception, *, with_text: bool) -> dict[str, Any]:
    """Fields for the log: the type and the frames; the text only if prompts may be logged."""
    fields: dict[str, Any] = {"error": type(error).__name__, "trace": frames_of(error)}
    if with_text:
        fields["text"] = str(error)
    return fields
