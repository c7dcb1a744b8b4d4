"""Digests of files, and of the tensors inside safetensors files, with nothing but the standard library."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from trephine.client.plain_json import parse_json

_READ_BYTES = 1 << 20
_MAX_HEADER_BYTES = 100 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDigest:
    """One tensor of a shard."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str
    """Of its raw bytes."""


def file_digest(path: Path) -> tuple[int, str]:
    """Return a file's size and sha256."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
            size += len(piece)
    return size, digest.hexdigest()


def listed_digests(digests: Mapping[str, str], *, apart: str) -> str:
    """Return what `sha256sum --check` reads: every file's digest and path, but for the list itself."""
    return "".join(f"{digests[name]}  {name}\n" for name in sorted(digests) if name != apart)


def tensor_digests(path: Path) -> Iterator[TensorDigest]:
    """Yield every tensor of a safetensors file.

    Raises:
        ValueError: If it is no safetensors file: a header that cannot be read, ranges that do not fill the
            file without gaps.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= _MAX_HEADER_BYTES:
            raise ValueError(f"a header of {length} bytes")
        header = parse_json(file.read(length))
        header.pop("__metadata__", None)
        _require_contiguous(header, path.stat().st_size - 8 - length)
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            file.seek(8 + length + start)
            yield TensorDigest(
                name=name,
                dtype=str(entry["dtype"]),
                shape=tuple(entry["shape"]),
                sha256=_digest_of(file, end - start),
            )


def _require_contiguous(header: dict[str, dict[str, list[int]]], size: int) -> None:
    end = 0
    for start, stop in sorted(entry["data_offsets"] for entry in header.values()):
        if start != end or stop < start:
            raise ValueError("tensors overlap or leave gaps")
        end = stop
    if end != size:
        raise ValueError("tensors do not fill the file")


def _digest_of(file: BinaryIO, length: int) -> str:
    digest = hashlib.sha256()
    while length:
        piece = file.read(min(length, _READ_BYTES))
        if not piece:
            raise ValueError("the file ends inside a tensor")
        digest.update(piece)
        length -= len(piece)
    return digest.hexdigest()
