"""What a replacement set's folder would take to load, read from its files' headers alone."""

from __future__ import annotations

from pathlib import Path

from trephine.app.checkpoints import count_numbers, read_header
from trephine.domain.errors import BrokenCheckpointError, BrokenReplacementError, UnsafeReplacementError

_FLOAT = 4
"""Layers compute in float32, however they are stored."""

_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".npz"}


def weight_bytes(folder: Path) -> int:
    """Return the bytes of all weights below a folder once they are in memory.

    Which layers they are, and whether they fit the model, is the engine's to judge.

    Raises:
        BrokenReplacementError: If there are no weights, or a header is unreadable.
        UnsafeReplacementError: If the weights are there as pickles only.
    """
    files = sorted(path for path in folder.rglob("*.safetensors") if path.is_file())
    if not files:
        raise _without_weights(folder)
    try:
        return sum(count_numbers(read_header(file)) for file in files) * _FLOAT
    except BrokenCheckpointError as error:
        file = str(error.context.get("file", ""))
        raise BrokenReplacementError(
            f"{file or folder.name} is no readable safetensors file; get the set again", file=file
        ) from error


def _without_weights(folder: Path) -> BrokenReplacementError | UnsafeReplacementError:
    pickled = next((path for path in sorted(folder.rglob("*")) if path.suffix in _PICKLES), None)
    if pickled is None:
        return BrokenReplacementError(f"{folder.name} holds no safetensors file; is it a replacement set?")
    return UnsafeReplacementError(
        f"{folder.name} holds its weights as {pickled.name}, which may run code and is never opened; "
        "convert it to safetensors, as `trephine replacements import` does",
        file=pickled.name,
    )
