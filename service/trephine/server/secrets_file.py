"""The bearer token's file."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from trephine.domain.errors import InvalidRequestError

_SHORTEST = 16


def read_or_make_token(file: Path) -> str:
    """Read a token that only its owner can read; make one if the file is not there.

    Raises:
        InvalidRequestError: If others can read the file, or it holds no token worth the name.
    """
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read(file)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        token = secrets.token_urlsafe(32)
        stream.write(token + "\n")
    return token


def _read(file: Path) -> str:
    mode = file.stat().st_mode & 0o777
    if mode & 0o077:
        raise InvalidRequestError(
            f"{file} can be read by others (mode {mode:o}): chmod 600 it", field="token_file"
        )
    token = file.read_text(encoding="utf-8").strip()
    if len(token) < _SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise InvalidRequestError(
            f"{file} must hold one token of at least {_SHORTEST} printable characters", field="token_file"
        )
    return token
