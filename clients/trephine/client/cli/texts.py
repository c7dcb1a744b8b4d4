"""Text files that a command is given."""

from __future__ import annotations

from pathlib import Path

from trephine.client.errors import LocalFileError


def read_text(path: Path) -> str:
    """Read a UTF-8 text.

    Raises:
        LocalFileError: If there is none.
    """
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LocalFileError(f"{path} cannot be read as UTF-8 text: {error}") from error
