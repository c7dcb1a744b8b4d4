"""Errors about bytes that are not what they should be."""

from __future__ import annotations

from trephine.client.error_root import ErrorKind, TrephineError


class HashMismatchError(TrephineError):
    """Bytes whose digest is not the one announced."""

    kind = ErrorKind.DATA_LOSS
    reason = "HASH_MISMATCH"


class CorruptRecordError(TrephineError):
    """A stored record that cannot be read, or is of a serialisation that is never opened."""

    kind = ErrorKind.DATA_LOSS
    reason = "CORRUPT_RECORD"
