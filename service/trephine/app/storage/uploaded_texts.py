"""Uploaded texts: artifacts that must be plain UTF-8."""

from __future__ import annotations

from trephine.app.storage.artifacts import ArtifactStore
from trephine.domain.errors import BrokenCorpusError, InvalidRequestError

LARGEST_BYTES = 6 << 20
"""A text crosses to the engine in one frame."""


async def read_text(artifacts: ArtifactStore, artifact: str, *, field: str) -> str:
    """Return an artifact as text.

    Raises:
        ResourceNotFoundError: If there is no such artifact.
        InvalidRequestError: If it is too large.
        BrokenCorpusError: If it is no text.
    """
    info = await artifacts.stat(artifact)
    if info.size > LARGEST_BYTES:
        raise InvalidRequestError(
            f"the text has {info.size} bytes and may have {LARGEST_BYTES}; send its beginning", field=field
        )
    return as_text(await artifacts.read(artifact), field=field)


def as_text(data: bytes, *, field: str) -> str:
    """Return bytes as text.

    Raises:
        BrokenCorpusError: If they are not UTF-8, hold NUL characters, or are blank.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise BrokenCorpusError(
            f"the text is not UTF-8 at byte {error.start}; convert it first", field=field
        ) from error
    found = data.find(0)
    if found >= 0:
        line = data.count(b"\n", 0, found) + 1
        raise nul_found("text", field, byte=found, line=line, instead="plain UTF-8 text")
    if not text.strip():
        raise BrokenCorpusError(
            "the text is blank; give one with words in it, or none for the built-in one", field=field
        )
    return text


def nul_found(what: str, field: str, *, byte: int, line: int, instead: str) -> BrokenCorpusError:
    """Return the error of a text that holds a NUL: where the first one is, and what to give instead."""
    return BrokenCorpusError(
        f"the {what} holds a NUL character in line {line} (byte {byte}), as binary files do; give {instead}",
        field=field,
        byte=byte,
        line=line,
    )
