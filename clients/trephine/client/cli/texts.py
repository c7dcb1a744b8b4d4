"""Text files that a command is given."""

from __future__ import annotations

from pathlib import Path

from trephine.client.errors import LocalFileError


def read_text(path: Path) -> str:
    """Read a UTF-8 text.

    Raises:
        LocalFileError: If it cannot be read, or is none.
    """
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise LocalFileError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LocalFileError(f"{path} is no UTF-8 text (byte {error.start}): save it as UTF-8") from error
