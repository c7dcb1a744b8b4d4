"""Files that are whole or absent: written beside, flushed, renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from trephine.engine.models.staging import full_disk_refused


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file in one visible step; shared memory is copied.

    Raises:
        DiskFullError: If there is no room.
    """
    beside = path.with_name(f".{path.name}.part")
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    with full_disk_refused():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(plain, beside)
        publish(beside, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one visible step.

    Raises:
        DiskFullError: If there is no room.
    """
    write_text(path, json.dumps(value, indent=1))


def write_text(path: Path, text: str) -> None:
    """Write text in one visible step.

    Raises:
        DiskFullError: If there is no room.
    """
    beside = path.with_name(f".{path.name}.part")
    with full_disk_refused():
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8")
        publish(beside, path)


def publish(beside: Path, path: Path) -> None:
    """Flush a file or a folder of files to the disk, then rename it."""
    for part in sorted(beside.iterdir()) if beside.is_dir() else []:
        _sync(part)
    _sync(beside)
    beside.rename(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
