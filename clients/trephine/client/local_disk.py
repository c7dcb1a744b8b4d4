"""What this machine's disk says when something cannot be written, as an error that says what to do."""

from __future__ import annotations

import errno
from pathlib import Path

from trephine.client.errors import DiskFullError, LocalFileError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_full(failure: OSError) -> bool:
    """True if there was no room: the disk, a quota or the largest size of a file."""
    return failure.errno in _NO_ROOM


def unwritten(what: str | Path, failure: OSError) -> DiskFullError | LocalFileError:
    """Return the error of what could not be written, and is not kept by half.

    Args:
        what: Names it.
        failure: As the system raised it.
    """
    said = failure.strerror or str(failure)
    if is_full(failure):
        return DiskFullError(f"cannot write {what}: {said}; nothing was kept, make room and try again")
    where = f" ({failure.filename})" if failure.filename else ""
    return LocalFileError(f"cannot write {what}: {said}{where}; nothing was kept")
