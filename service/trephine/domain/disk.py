"""What the system says when a file cannot grow."""

from __future__ import annotations

import errno

_WHY = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would grow beyond what the system allows it (ulimit -f, or the file system's bound)",
}


def why_no_room(error: OSError) -> str | None:
    """Say what has run out, or None if the error is of another sort."""
    return _WHY.get(error.errno or 0)
