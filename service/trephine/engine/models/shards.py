"""Safetensors files byte by byte: where tensors lie, and changing some without touching the rest.

A file is 8 bytes of header length, a JSON header, then raw tensors. An edit keeps every shape and dtype, so
a patched shard is its parent with some byte ranges replaced: names, order and header stay as they are, and
no more than one tensor is ever in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trephine.domain.errors import BrokenCheckpointError
from trephine.engine.models.fingerprint import tensor_bytes

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"

DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""The floating types that an edit can be rounded to."""
_MAX_HEADER_BYTES = 100 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEntry:
    """One tensor of a checkpoint folder."""

    name: str
    file: str
    """The shard, relative to the folder."""
    dtype: str
    """As safetensors writes it: `F32`, `BF16`."""
    shape: tuple[int, ...]
    start: int
    """Offset of its first byte in the file."""
    end: int


def read_entries(folder: Path) -> dict[str, TensorEntry]:
    """List every tensor of the shards that stock transformers loads, by name.

    A name may stand in several shards, where a tool left an older copy. The index says which one counts;
    stock transformers does not ask it and takes the last. Where the two differ, readers of the folder do.

    Raises:
        BrokenCheckpointError: If there are none, a header cannot be read, or a tensor stands in several
            shards and the index does not name the one that stock transformers loads.
    """
    entries: dict[str, TensorEntry] = {}
    copies: dict[str, list[str]] = {}
    for file in shard_names(folder):
        for entry in _read_shard(folder, file):
            entries[entry.name] = entry
            copies.setdefault(entry.name, []).append(file)
    several = {name: files for name, files in copies.items() if len(files) > 1}
    weight_map = _weight_map(folder) if several else {}
    for name, files in several.items():
        if weight_map.get(name) != files[-1]:
            raise BrokenCheckpointError(
                f"the tensor {name} stands in {' and '.join(files)}; {INDEX_NAME} names "
                f"{weight_map.get(name, 'none of them')}, and stock transformers loads the last: which "
                "one counts would depend on the reader. Load the model with transformers, write it anew with "
                "`save_pretrained`, and make the edit for that",
                tensor=name,
            )
    return entries


def stored_dtype(entries: Mapping[str, TensorEntry]) -> str:
    """Return the type of a checkpoint's largest tensor, as safetensors writes it."""
    return max(entries.values(), key=lambda entry: entry.end - entry.start).dtype


def shard_names(folder: Path) -> tuple[str, ...]:
    """Return the shards that stock transformers loads: those of the index, or the single file.

    Raises:
        BrokenCheckpointError: If the folder has no safetensors weights.
    """
    if (folder / SINGLE_NAME).is_file():
        return (SINGLE_NAME,)
    names = tuple(sorted(set(_weight_map(folder).values())))
    if any(Path(name).name != name for name in names):
        raise BrokenCheckpointError(f"{INDEX_NAME} names shards outside the folder")
    return names


def _weight_map(folder: Path) -> dict[str, str]:
    """Read which shard each tensor is in, as the index has it."""
    index = folder / INDEX_NAME
    if not index.is_file():
        raise BrokenCheckpointError(
            f"the parent has neither {SINGLE_NAME} nor {INDEX_NAME}: an export patches safetensors files"
        )
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenCheckpointError(f"{INDEX_NAME} cannot be read: {error}") from error


def _read_shard(folder: Path, file: str) -> Iterator[TensorEntry]:
    try:
        with (folder / file).open("rb") as shard:
            length = int.from_bytes(shard.read(8), "little")
            if not 0 < length <= _MAX_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(shard.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                yield TensorEntry(
                    name=name,
                    file=file,
                    dtype=entry["dtype"],
                    shape=tuple(entry["shape"]),
                    start=8 + length + start,
                    end=8 + length + end,
                )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BrokenCheckpointError(f"the shard {file} cannot be read: {error}", file=file) from error


def read_bytes(folder: Path, entry: TensorEntry) -> bytearray:
    """Read one tensor's raw bytes.

    Raises:
        BrokenCheckpointError: If the file ends before the tensor does.
    """
    data = bytearray(entry.end - entry.start)
    with (folder / entry.file).open("rb") as shard:
        shard.seek(entry.start)
        if shard.readinto(data) != len(data):
            raise BrokenCheckpointError(f"{entry.file} ends inside {entry.name}", file=entry.file)
    return data


def sha256_of(folder: Path, entry: TensorEntry) -> str:
    """Hash one tensor's raw bytes."""
    return hashlib.sha256(read_bytes(folder, entry)).hexdigest()


def read_tensor(folder: Path, entry: TensorEntry) -> Tensor:
    """Read one floating tensor in the dtype that it is stored in.

    Raises:
        BrokenCheckpointError: If it is stored in a type that cannot be edited.
    """
    dtype = DTYPES.get(entry.dtype)
    if dtype is None:
        raise BrokenCheckpointError(
            f"{entry.name} is stored as {entry.dtype}; edits are written to {', '.join(DTYPES)} only",
            tensor=entry.name,
        )
    data = read_bytes(folder, entry)
    flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return flat.reshape(entry.shape)


def scale_slices(tensor: Tensor, factors: Mapping[int, float], *, axis: int) -> Tensor:
    """Scale some rows (axis 0) or columns (axis 1): computed in float32 or wider, rounded once.

    A factor of 0 writes +0. All other elements keep their bits.
    """
    changed = tensor.clone()
    for index, factor in factors.items():
        part = tensor.select(axis, index)
        wide = part.to(torch.promote_types(part.dtype, torch.float32))
        scaled = torch.zeros_like(wide) if factor == 0 else wide * factor
        changed.select(axis, index).copy_(scaled.to(tensor.dtype))
    return changed


def overwrite(folder: Path, entry: TensorEntry, tensor: Tensor) -> None:
    """Write a tensor over its parent's bytes, in place; the rest of the file is not touched."""
    data = tensor_bytes(tensor)
    if len(data) != entry.end - entry.start:
        raise ValueError(f"{entry.name}: {len(data)} bytes do not fill {entry.end - entry.start}")
    with (folder / entry.file).open("r+b") as shard:
        shard.seek(entry.start)
        shard.write(data)
