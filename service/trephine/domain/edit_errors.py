"""Ways in which stored edits can refuse: changed meanwhile, still needed, in each other's way."""

from __future__ import annotations

from trephine.domain.error_root import ErrorKind, TrephineError


class EditChangedError(TrephineError):
    """The edit is no longer at the version, or etag, that the caller has seen."""

    kind = ErrorKind.PRECONDITION
    reason = "EDIT_CHANGED"


class EditInUseError(TrephineError):
    """Exports, served models or other edits rest on the edit; the message lists them."""

    kind = ErrorKind.PRECONDITION
    reason = "EDIT_IN_USE"


class EditConflictError(TrephineError):
    """Two edits cannot act together; the context names target, positions and both edits."""

    kind = ErrorKind.PRECONDITION
    reason = "EDIT_CONFLICT"
