"""Sending bytes to the server, in pieces, under their own digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from trephine.client.errors import LocalFileError
from trephine.v1 import artifact_service_pb2

PIECE_BYTES = 1 << 20
PLAIN_TEXT = "text/plain; charset=utf-8"


def write_requests(source: bytes | Path, media_type: str) -> Iterator[artifact_service_pb2.WriteRequest]:
    """The messages of one upload; the last one carries the digest of the whole.

    Raises:
        LocalFileError: At once, if the file cannot be opened.
    """
    if isinstance(source, bytes):
        return _requests(BytesIO(source), media_type)
    try:
        return _requests(source.open("rb"), media_type)
    except OSError as failure:
        raise LocalFileError(f"cannot read {source}: {failure.strerror}") from failure


def _requests(file: BinaryIO, media_type: str) -> Iterator[artifact_service_pb2.WriteRequest]:
    with file:
        yield from _messages(iter(lambda: file.read(PIECE_BYTES), b""), media_type)


def _messages(pieces: Iterator[bytes], media_type: str) -> Iterator[artifact_service_pb2.WriteRequest]:
    upload, offset, digest = str(uuid4()), 0, hashlib.sha256()
    for piece in pieces:
        yield artifact_service_pb2.WriteRequest(
            upload_id=upload, offset=offset, data=piece, media_type=media_type
        )
        offset += len(piece)
        digest.update(piece)
    yield artifact_service_pb2.WriteRequest(
        upload_id=upload, offset=offset, media_type=media_type, finish=True, sha256=digest.hexdigest()
    )
