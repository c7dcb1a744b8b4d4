"""The certifier's look at what lies beside the weights: the parent's, byte for byte, but for what is planned.

Loaded by the certifier from beside it. Imports nothing of Trephine, and shares no code with the compiler.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

_CONFIG, _INDEX = "config.json", "model.safetensors.index.json"


def changed_files(exported: Path, parent: Path, copied: dict[str, str], config: dict[str, Any]) -> int:
    """Count copied files that are missing, or are neither the parent's nor what was planned of them.

    Shards are compared tensor by tensor elsewhere. Of the config all fields but the planned ones must be the
    parent's, and the index must keep every tensor where it was.

    Args:
        exported: The folder.
        parent: Its parent's.
        copied: Path in the parent -> path in the folder.
        config: Fields of the config that were planned, with their values.
    """
    found = 0
    for source, name in copied.items():
        if name.endswith(".safetensors"):
            continue
        before, after = parent / source, exported / name
        if not after.is_file():
            found += 1
        elif name == _CONFIG:
            found += _read(after) != _read(before) | config
        elif name == _INDEX:
            found += not _read(before)["weight_map"].items() <= _read(after)["weight_map"].items()
        else:
            found += _digest(before) != _digest(after)
    return found


def _read(path: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return value


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
