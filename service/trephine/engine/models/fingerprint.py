"""The hash that names a model's weights."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trephine.engine.models.quanta import finish

_FILE_PIECE = 1 << 22


def weight_hash(model: nn.Module) -> Generator[None, None, str]:
    """Hash every parameter and persistent buffer, one tensor a quantum; return the sha256 in hex."""
    return (yield from state_hash(model.state_dict()))


def state_hash(state: Mapping[str, Tensor]) -> Generator[None, None, str]:
    """Hash sorted (name, dtype, shape, bytes); of tied tensors only the first name counts."""
    digest = hashlib.sha256()
    for name, tensor in _distinct(state):
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name}\0{dtype}\0{','.join(map(str, tensor.shape))}\0".encode())
        digest.update(tensor_bytes(tensor))
        yield
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """View a tensor's bytes in C order without a copy where it lies in C order on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    buffer: Any = flat.view(torch.uint8).numpy()
    return memoryview(buffer) if flat.numel() else memoryview(b"")


def file_hash(path: Path) -> Generator[None, None, str]:
    """Hash a file's bytes, a few megabytes a quantum; return the sha256 in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_FILE_PIECE):
            digest.update(piece)
            yield
    return digest.hexdigest()


def hash_now(model: nn.Module) -> str:
    """Hash in one go, for models so small that no quantum is needed."""
    return finish(weight_hash(model))


def _distinct(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    seen: set[tuple[int, tuple[int, ...]]] = set()
    for name in sorted(state):
        key = (state[name].data_ptr(), tuple(state[name].shape))
        if state[name].numel() and key in seen:
            continue
        seen.add(key)
        yield name, state[name]
