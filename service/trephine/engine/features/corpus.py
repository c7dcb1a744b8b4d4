"""A corpus as a stream of documents: text or JSONL, read line by line, never held whole.

A place in the stream is a byte offset with its line and document number, so that reading can go on there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import BinaryIO

from trephine.domain.errors import BrokenCorpusError

_PIECE_BYTES = 1 << 16
"""A longer line, and a longer paragraph, is cut into documents of about this size."""
_RECORD_BYTES = 1 << 24
"""A longer JSONL line is refused."""
_CHECK_BYTES = 1 << 22
"""Bytes that are checked per quantum."""
_JUNK = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
"""Controls that no text has; tab, line ends and the escape of terminals are let through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the next document begins."""

    offset: int = 0
    line: int = 1
    document: int = 0
    """Documents before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One document, and where the one after it begins."""

    text: str
    number: int
    following: Place


def corpus_path(path: str) -> Path:
    """Return the corpus's file; an empty path is the text that is shipped.

    Raises:
        BrokenCorpusError: If there is no such file.
    """
    file = Path(path) if path else Path(str(resources.files("trephine.engine").joinpath("texts/retain.txt")))
    if not file.is_file():
        raise BrokenCorpusError("the corpus is no file any more; give it again")
    return file


def documents(path: Path, place: Place) -> Iterator[Document]:
    """Yield the documents from a place on.

    Raises:
        BrokenCorpusError: At what is no text, naming line and byte.
    """
    with path.open("rb") as file:
        records = _holds_records(file)
        file.seek(place.offset)
        yield from _records(file, place) if records else _paragraphs(file, place)


def check_corpus(path: Path, max_bytes: int) -> Generator[int, None, None]:
    """Read the beginning of a corpus for its faults alone; yields bytes done after bounded quanta.

    Raises:
        BrokenCorpusError: At what is no text, naming line and byte.
    """
    told = 0
    for document in documents(path, Place()):
        done = document.following.offset
        if done - told >= _CHECK_BYTES:
            told = done
            yield done
        if done >= max_bytes:
            return


def _holds_records(file: BinaryIO) -> bool:
    """True for JSONL: the first line is a JSON object that holds a text."""
    first = file.readline(_RECORD_BYTES)
    while first and not first.strip():
        first = file.readline(_RECORD_BYTES)
    if not first.lstrip().startswith(b"{"):
        return False
    try:
        value = json.loads(first)
    except ValueError:
        return False
    return isinstance(value, dict) and isinstance(value.get("text"), str)


def _paragraphs(file: BinaryIO, place: Place) -> Iterator[Document]:
    """Split text at blank lines."""
    lines: list[str] = []
    held, at = 0, place
    while raw := _piece(file):
        line = _decoded(raw, at)
        ends = raw.endswith(b"\n")
        at = replace(at, offset=at.offset + len(raw), line=at.line + ends)
        if line.strip():
            lines.append(line)
            held += len(line)
        if lines and (not line.strip() or held >= _PIECE_BYTES):
            at = replace(at, document=at.document + 1)
            yield Document(text="".join(lines), number=at.document - 1, following=at)
            lines, held = [], 0
    if lines:
        at = replace(at, document=at.document + 1)
        yield Document(text="".join(lines), number=at.document - 1, following=at)


def _records(file: BinaryIO, place: Place) -> Iterator[Document]:
    """Read one document per line of JSONL."""
    at = place
    while raw := file.readline(_RECORD_BYTES):
        line = _decoded(raw, at)
        after = replace(at, offset=at.offset + len(raw), line=at.line + 1)
        if line.strip():
            after = replace(after, document=at.document + 1)
            yield Document(text=_text_of(line, at), number=at.document, following=after)
        at = after


def _text_of(line: str, at: Place) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise BrokenCorpusError(
            f"line {at.line} of the corpus is no JSON ({error}); every line must be an object with a `text`",
            line=at.line,
            byte=at.offset,
        ) from error
    text = value.get("text") if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise BrokenCorpusError(
            f"line {at.line} of the corpus has no `text`; every line must be an object that holds one",
            line=at.line,
            byte=at.offset,
        )
    _require_text(text, at)
    return text


def _piece(file: BinaryIO) -> bytes:
    """Read a line, or a piece of a long one that ends between two characters."""
    raw = file.readline(_PIECE_BYTES)
    if len(raw) < _PIECE_BYTES or raw.endswith(b"\n"):
        return raw
    for back in range(1, 4):
        byte = raw[-back]
        if byte >= 0xC0:
            needed = 2 + (byte >= 0xE0) + (byte >= 0xF0)
            cut = back if back < needed else 0
            file.seek(-cut, 1)
            return raw[: len(raw) - cut]
    return raw


def _decoded(raw: bytes, at: Place) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = at.offset + error.start
        raise BrokenCorpusError(
            f"the corpus is no UTF-8 text at byte {byte} (line {at.line}); convert it, or remove what is "
            "binary",
            line=at.line,
            byte=byte,
        ) from error
    _require_text(text, at)
    return text


def _require_text(text: str, at: Place) -> None:
    junk = _JUNK.search(text)
    if junk is None:
        return
    byte = at.offset + len(text[: junk.start()].encode("utf-8", "surrogatepass"))
    raise BrokenCorpusError(
        f"the corpus holds the control character U+{ord(junk.group()):04X} near byte {byte} (line "
        f"{at.line}); it looks binary, give plain text or JSONL with a `text` per line",
        line=at.line,
        byte=byte,
    )
