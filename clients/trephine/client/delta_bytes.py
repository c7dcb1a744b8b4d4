"""Bytes of tensors as deltas have them: where they lie in a shard, laid into a larger shape, combined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

from trephine.client.local_errors import LocalFileError
from trephine.client.plain_json import parse_json

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor's bytes lie in a file."""

    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> tuple[dict[str, StoredTensor], int]:
    """Return a shard's tensors and where its first tensor begins.

    Raises:
        LocalFileError: If it is no safetensors file.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= path.stat().st_size:
                raise ValueError(f"a header of {length} bytes")
            header = parse_json(file.read(length))
        header.pop("__metadata__", None)
        begin = 8 + length
        return {
            name: StoredTensor(tuple(e["shape"]), begin + e["data_offsets"][0], begin + e["data_offsets"][1])
            for name, e in header.items()
        }, begin
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LocalFileError(f"{path} is no safetensors file: {error}") from error


def laid_out(data: bytes, old: Sequence[int], new: Sequence[int]) -> bytes | None:
    """Put a tensor into the leading corner of a larger one of zeros; None if it does not fit."""
    if tuple(old) == tuple(new):
        return data
    if len(old) != len(new) or len(old) not in (1, 2) or any(o > n for o, n in zip(old, new, strict=True)):
        return None
    width = len(data) // max(1, prod(old))
    rows, before, after = (1, old[0], new[0]) if len(old) == 1 else (old[0], old[1], new[1])
    step, gap = before * width, bytes((after - before) * width)
    grown = b"".join(data[row * step : (row + 1) * step] + gap for row in range(rows))
    return grown + bytes(prod(new) * width - len(grown))


def xor(a: bytes, b: bytes) -> bytes:
    """Combine two runs of bytes of one length, a piece at a time."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} bytes")
    pieces = []
    for start in range(0, len(a), _PIECE):
        left, right = a[start : start + _PIECE], b[start : start + _PIECE]
        mixed = int.from_bytes(left, "little") ^ int.from_bytes(right, "little")
        pieces.append(mixed.to_bytes(len(left), "little"))
    return b"".join(pieces)


def read_range(file: BinaryIO, start: int, end: int) -> bytes:
    """Read the bytes from `start` to `end`."""
    file.seek(start)
    return file.read(end - start)
