"""Writing a shard whose tensors have grown or are new: headers anew, untouched tensors byte for byte.

One tensor at a time is in memory; what is not changed is copied in pieces.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from trephine.engine.models.fingerprint import tensor_bytes
from trephine.engine.models.shards import INDEX_NAME, TensorEntry, overwrite, read_tensor
from trephine.engine.models.staging import full_disk_refused
from trephine.engine.weights.compiling import STORED_DTYPES, WeightProgram
from trephine.engine.weights.tensors import TensorChange, carried_out

_PIECE = 16 << 20
_SIZES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}


def reshaped_files(changes: Sequence[TensorChange]) -> frozenset[str]:
    """Return the shards whose headers change."""
    return frozenset(change.file for change in changes if not change.keeps_shape)


def grown_bytes(changes: Sequence[TensorChange]) -> int:
    """Return by how much tensors grow, headers left out."""
    return sum(
        _size(change) - (change.entry.end - change.entry.start if change.entry else 0) for change in changes
    )


def _size(change: TensorChange) -> int:
    return prod(change.shape) * _SIZES[change.dtype]


def changed_tensor(folder: Path, change: TensorChange) -> Tensor:
    """Carry out a change on the parent's tensor in a folder."""
    source = change.entry or change.copied_from
    parent = None if source is None else read_tensor(folder, source)
    return carried_out(change, parent, STORED_DTYPES[change.dtype])


def write_weights(
    parent: Path, target: Path, entries: Mapping[str, TensorEntry], program: WeightProgram
) -> Generator[str, None, None]:
    """Write a program's tensors, one a quantum, then config and index; yield each tensor's name.

    Args:
        parent: The parent's folder.
        target: Its copy; shards that are written anew may be missing there.
        entries: The parent's tensors.
        program: What is changed.
    """
    changes, anew = program.changes, reshaped_files(program.changes)
    for file in sorted(anew):
        inside = {change.name: change for change in changes if change.file == file}
        own = [entry for entry in entries.values() if entry.file == file]
        yield from rewrite_shard(parent, target, file, own, inside)
    for change in changes:
        if change.file in anew or change.entry is None:
            continue
        tensor = changed_tensor(target, change)
        with full_disk_refused():
            overwrite(target, change.entry, tensor)
        yield change.name
    with full_disk_refused():
        if program.config:
            write_config(parent, target, program.config)
        if anew:
            write_index(parent, target, changes)


def rewrite_shard(
    parent: Path,
    target: Path,
    file: str,
    entries: Sequence[TensorEntry],
    changes: Mapping[str, TensorChange],
) -> Generator[str, None, None]:
    """Write a shard with its changed and new tensors, one a quantum, and yield each one's name.

    Args:
        parent: The parent's folder.
        target: The folder to write to.
        file: The shard.
        entries: The parent's tensors in it.
        changes: By name, those that belong into this shard.
    """
    ordered = sorted(entries, key=lambda entry: entry.start)
    new = [change for change in changes.values() if change.entry is None]
    header = _header(parent / file, ordered, new, changes)
    with full_disk_refused(), (target / file).open("wb") as shard:
        shard.write(header)
    for entry in ordered:
        with full_disk_refused(), (target / file).open("ab") as shard:
            if entry.name in changes:
                shard.write(tensor_bytes(changed_tensor(parent, changes[entry.name])))
            else:
                _copy_range(parent / file, entry, shard)
        yield entry.name
    for change in new:
        with full_disk_refused(), (target / file).open("ab") as shard:
            shard.write(tensor_bytes(changed_tensor(parent, change)))
        yield change.name


def _header(
    source: Path,
    ordered: Sequence[TensorEntry],
    new: Sequence[TensorChange],
    changes: Mapping[str, TensorChange],
) -> bytes:
    with source.open("rb") as file:
        old: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    fields: dict[str, Any] = {"__metadata__": old["__metadata__"]} if "__metadata__" in old else {}
    offset = 0
    for entry in ordered:
        change = changes.get(entry.name)
        size = entry.end - entry.start if change is None else _size(change)
        shape = entry.shape if change is None else change.shape
        fields[entry.name] = _field(entry.dtype, shape, offset, size)
        offset += size
    for change in new:
        fields[change.name] = _field(change.dtype, change.shape, offset, _size(change))
        offset += _size(change)
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _field(dtype: str, shape: tuple[int, ...], start: int, size: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + size]}


def _copy_range(source: Path, entry: TensorEntry, shard: BinaryIO) -> None:
    with source.open("rb") as file:
        file.seek(entry.start)
        left = entry.end - entry.start
        while left:
            piece = file.read(min(left, _PIECE))
            shard.write(piece)
            left -= len(piece)


def write_config(parent: Path, target: Path, fields: Mapping[str, Any]) -> None:
    """Set fields of config.json; all others keep value and order."""
    config = json.loads((parent / "config.json").read_text(encoding="utf-8"))
    config.update(fields)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_index(parent: Path, target: Path, changes: Sequence[TensorChange]) -> None:
    """Enter new tensors and the new total into the index of shards, where there is one."""
    if not (parent / INDEX_NAME).is_file():
        return
    index = json.loads((parent / INDEX_NAME).read_text(encoding="utf-8"))
    index["weight_map"] |= {change.name: change.file for change in changes if change.entry is None}
    metadata = index.setdefault("metadata", {})
    if "total_size" in metadata:
        metadata["total_size"] += grown_bytes(changes)
    if "total_parameters" in metadata:
        metadata["total_parameters"] += sum(
            prod(change.shape) - (prod(change.entry.shape) if change.entry else 0) for change in changes
        )
    index["weight_map"] = dict(sorted(index["weight_map"].items()))
    (target / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
