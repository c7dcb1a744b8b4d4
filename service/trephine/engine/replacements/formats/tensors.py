"""A safetensors file: its header read and checked at once, its tensors one by one when asked for."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from trephine.domain.errors import BrokenReplacementError, UnsupportedReplacementError

_MAX_HEADER_BYTES = 100_000_000
"""As the format itself allows."""
_CHUNK_BYTES = 1 << 20
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_CONTRADICTED = "Fetch the set again, or correct its configuration (cfg.json or config.yaml)"
"""What to do where a file and its configuration do not agree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor as the header describes it."""

    dtype: str
    """As torch names it, `float16`."""
    shape: tuple[int, ...]
    offset: int
    """From the beginning of the file, in bytes."""
    size: int
    """In bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFile:
    """An opened file. Only its header is in memory."""

    path: Path
    entries: Mapping[str, TensorEntry]

    def shape(self, name: str, *sizes: int | None) -> tuple[int, ...]:
        """Return a tensor's shape, checked against the expected sizes (None: any).

        Raises:
            BrokenReplacementError: If it is missing or of another shape.
        """
        found = self.entries.get(name)
        if found is None:
            listed = ", ".join(sorted(self.entries))
            raise self._broken(name, f"is missing; the file has {listed}. {_CONTRADICTED}")
        fits = len(found.shape) == len(sizes) and all(
            want in (None, have) for want, have in zip(sizes, found.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in sizes)
            raise self._broken(
                name, f"has shape {list(found.shape)} where [{wanted}] is needed. {_CONTRADICTED}"
            )
        return found.shape

    def read(self, name: str, device: torch.device | str = "cpu", *, since: int = 0) -> Tensor:
        """Read one tensor, in the dtype that it is stored in.

        The file is copied, not mapped: a mapped file that somebody shortens later would end the engine.

        Args:
            name: Must be in the file.
            device: Where it goes.
            since: Leaves out what lies below this index of the second axis.

        Raises:
            BrokenReplacementError: If it cannot be read, or holds NaN or infinity.
        """
        entry = self.entries[name]
        shape = (entry.shape[0], entry.shape[1] - since, *entry.shape[2:]) if since else entry.shape
        tensor = torch.empty(shape, dtype=getattr(torch, entry.dtype))
        try:
            self._fill(tensor, entry, since)
        except OSError as error:
            raise self._broken(name, f"cannot be read ({error}); load the set again") from error
        if not bool(torch.isfinite(tensor).all()):
            raise self._broken(
                name,
                "holds NaN or infinity; the training that wrote it failed. Use a checkpoint from before, or "
                "fit the set again",
            )
        return tensor.to(device)

    def digest_lines(self, names: Sequence[str]) -> Iterator[bytes]:
        """Yield what goes into a hash: sorted (name, dtype, shape) and bytes, a chunk at a time."""
        with self.path.open("rb") as file:
            for name in sorted(names):
                entry = self.entries[name]
                yield f"{name}\0{entry.dtype}\0{','.join(map(str, entry.shape))}\0".encode()
                yield from _chunks(file, entry)

    def _fill(self, tensor: Tensor, entry: TensorEntry, since: int) -> None:
        """Read into a tensor, row by row where rows are read in part."""
        if not tensor.numel():
            return
        target = memoryview(cast(Any, tensor.view(-1).view(torch.uint8).numpy()))
        rows = entry.shape[0] if since else 1
        stride, kept = entry.size // rows, len(target) // rows
        with self.path.open("rb") as file:
            for row in range(rows):
                file.seek(entry.offset + (row + 1) * stride - kept)
                if file.readinto(target[row * kept : (row + 1) * kept]) != kept:
                    raise OSError("the file became shorter while it was read")

    def _broken(self, name: str, what: str) -> BrokenReplacementError:
        return BrokenReplacementError(
            f"{self.path.parent.name}/{self.path.name}: tensor {name} {what}",
            file=f"{self.path.parent.name}/{self.path.name}",
            tensor=name,
        )


def open_tensors(path: Path) -> TensorFile:
    """Read and check a file's header.

    Raises:
        BrokenReplacementError: If the file is missing, cut short or not of this format.
        UnsupportedReplacementError: If a tensor has a dtype that dictionaries are not stored in.
    """
    label = f"{path.parent.name}/{path.name}"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            if not 2 <= header_bytes <= min(_MAX_HEADER_BYTES, size - 8):
                raise ValueError("its header is longer than the file")
            header: dict[str, Any] = json.loads(file.read(header_bytes))
        entries = {
            name: _entry(label, name, description, 8 + header_bytes)
            for name, description in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenReplacementError(
            f"{label} is no readable safetensors file ({error}); fetch it again", file=label
        ) from error
    end = max((entry.offset + entry.size for entry in entries.values()), default=0)
    if size < end:
        raise BrokenReplacementError(
            f"{label} is cut short: it has {size} of {end} bytes; fetch it again", file=label, size=size
        )
    return TensorFile(path=path, entries=entries)


def _entry(label: str, name: str, description: Mapping[str, Any], base: int) -> TensorEntry:
    stored, shape = str(description["dtype"]), tuple(int(size) for size in description["shape"])
    begin, end = description["data_offsets"]
    if stored not in _DTYPES:
        raise UnsupportedReplacementError(
            f"{label}: tensor {name} is stored as {stored}; dictionaries are read in {', '.join(_DTYPES)}",
            file=label,
            tensor=name,
        )
    if min(begin, *shape, 0) < 0 or end - begin != math.prod(shape) * _BYTES[stored]:
        raise ValueError(f"tensor {name} has {end - begin} bytes, which do not make its shape")
    return TensorEntry(dtype=_DTYPES[stored], shape=shape, offset=base + begin, size=end - begin)


def _chunks(file: Any, entry: TensorEntry) -> Iterator[bytes]:
    file.seek(entry.offset)
    left = entry.size
    while left:
        chunk = file.read(min(left, _CHUNK_BYTES))
        if not chunk:
            raise BrokenReplacementError("a weights file became shorter while it was read; load it again")
        left -= len(chunk)
        yield chunk


def content_hash(files: Sequence[tuple[TensorFile, Sequence[str]]], config: Mapping[str, Any]) -> str:
    """Hash a layer: sha256 over its tensors and its configuration in canonical JSON."""
    digest = hashlib.sha256()
    for file, names in files:
        for part in file.digest_lines(names):
            digest.update(part)
    digest.update(json.dumps(config, sort_keys=True, separators=(",", ":"), default=str).encode())
    return digest.hexdigest()
