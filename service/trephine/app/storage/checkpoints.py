"""What a model folder would take to load, read from its files' headers alone."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path
from typing import Any

from trephine.domain.errors import BrokenCheckpointError, UnsafeCheckpointError

_HEADER_LIMIT = 100_000_000
"""The largest header that the safetensors format allows, in bytes."""

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def count_parameters(folder: Path) -> int:
    """Count the numbers in a model folder's safetensors files.

    Architecture and tokenizer are the engine's to judge, before it reads any weight.

    Raises:
        BrokenCheckpointError: If config or a shard is missing, or a header is unreadable.
        UnsafeCheckpointError: If the weights are there as pickles only.
    """
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise BrokenCheckpointError(
                f"{folder.name} holds an adapter and no model: load the model that it belongs to, and name "
                "this folder as its adapter",
                file="adapter_config.json",
            )
        raise BrokenCheckpointError(
            f"{folder.name} has no config.json; fetch the model again", missing="config.json"
        )
    return sum(count_numbers(read_header(shard)) for shard in _shards(folder))


def _shards(folder: Path) -> tuple[Path, ...]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return _indexed(folder, index)
    shards = tuple(sorted(folder.glob("*.safetensors")))
    if shards:
        return shards
    pickled = next((found for pattern in _PICKLES for found in folder.glob(pattern)), None)
    if pickled is not None:
        raise UnsafeCheckpointError(
            f"{folder.name} holds its weights as {pickled.name}, which may be a pickle and is never opened; "
            "convert it to safetensors",
            file=pickled.name,
        )
    raise BrokenCheckpointError(f"{folder.name} has no safetensors file; fetch the model again")


def _indexed(folder: Path, index: Path) -> tuple[Path, ...]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise BrokenCheckpointError(
            f"{folder.name}/{index.name} cannot be read; fetch the model again"
        ) from error
    shards = []
    for name in names:
        shard = folder / Path(str(name)).name
        if not shard.is_file():
            raise BrokenCheckpointError(
                f"{folder.name} lacks its shard {shard.name}; fetch the model again", missing=shard.name
            )
        shards.append(shard)
    return tuple(shards)


def read_header(shard: Path) -> dict[str, Any]:
    """Return a safetensors file's header.

    Raises:
        BrokenCheckpointError: If it is none.
    """
    try:
        with shard.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _HEADER_LIMIT:
                raise ValueError("header too long")
            header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise TypeError("header is no object")
    except (OSError, ValueError, TypeError, struct.error) as error:
        raise BrokenCheckpointError(
            f"{shard.name} is no readable safetensors file; fetch the model again", file=shard.name
        ) from error
    return header


def count_numbers(header: dict[str, Any]) -> int:
    """Count the numbers of all tensors that a header names.

    Raises:
        BrokenCheckpointError: If it lacks shapes.
    """
    tensors = [entry for name, entry in header.items() if name != "__metadata__"]
    try:
        return sum(prod(int(size) for size in entry["shape"]) for entry in tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenCheckpointError("a safetensors header lacks shapes; fetch the model again") from error
