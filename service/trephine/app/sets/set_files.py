"""What a replacement set's folder would take to load, read from its files' headers alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trephine.app.storage.checkpoints import read_header
from trephine.domain.errors import BrokenCheckpointError, BrokenReplacementError, UnsafeReplacementError

_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npz"}


def weight_bytes(folder: Path) -> int:
    """Return the bytes of all weights below a folder; they are as many in memory.

    Which layers they are, and whether they fit the model, is the engine's to judge.

    Raises:
        BrokenReplacementError: If there are no weights, or a header is unreadable.
        UnsafeReplacementError: If the weights are there as pickles only.
    """
    files = sorted(path for path in folder.rglob("*.safetensors") if path.is_file())
    if not files:
        raise _without_weights(folder)
    try:
        return sum(_tensor_bytes(read_header(file), file) for file in files)
    except BrokenCheckpointError as error:
        file = str(error.context.get("file", ""))
        raise BrokenReplacementError(
            f"{file or folder.name} is no readable safetensors file; get the set again", file=file
        ) from error


def _tensor_bytes(header: dict[str, Any], file: Path) -> int:
    try:
        spans = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
        return sum(int(end) - int(begin) for begin, end in spans)
    except (KeyError, TypeError, ValueError) as error:
        raise BrokenCheckpointError("a safetensors header lacks offsets", file=file.name) from error


def _without_weights(folder: Path) -> BrokenReplacementError | UnsafeReplacementError:
    pickled = next((path for path in sorted(folder.rglob("*")) if path.suffix in _PICKLES), None)
    if pickled is None:
        return BrokenReplacementError(f"{folder.name} holds no safetensors file; is it a replacement set?")
    return UnsafeReplacementError(
        f"{folder.name} holds its weights as {pickled.name}, which may run code and is never opened; "
        "convert the set to safetensors with the library that wrote it",
        file=pickled.name,
    )
