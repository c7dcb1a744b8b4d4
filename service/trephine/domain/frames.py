"""Where an exception came from, in words that quote nothing."""

from __future__ import annotations

import traceback

_MOST = 12


def frames_of(error: BaseException) -> list[str]:
    """Return the innermost frames as FILE:LINE FUNCTION, without messages and lines of source."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-_MOST:]]
