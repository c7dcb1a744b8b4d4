"""Opening a set: which format it is, and that format's reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trephine.domain.errors import (
    BrokenReplacementError,
    ReplacementNotFoundError,
    UnsafeReplacementError,
)
from trephine.domain.replacements import SetFormat
from trephine.engine.architecture import Architecture
from trephine.engine.replacements.formats import saelens
from trephine.engine.replacements.formats.saelens_config import CONFIG
from trephine.engine.replacements.layer import ReadSet

_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".npz", ".npy")
_DEPTH = 4
"""Folders below the set's own that are searched; releases nest `layer_3/width_16k/average_l0_21`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One way to read a folder."""

    format: SetFormat
    folders: tuple[Path, ...]
    """Those that hold the files, ascending by name."""


def open_set(
    folder: Path, format: SetFormat, *, architecture: Architecture, allow_unverified: bool
) -> ReadSet:
    """Describe a set on disk; weights are read layer by layer later.

    Args:
        folder: The set's own folder.
        format: How it lies there, or `auto`.
        architecture: Of the model that it shall be loaded beside.
        allow_unverified: Read a format that could not be tested against its own writer.

    Raises:
        ReplacementNotFoundError: If there is no such folder.
        UnsafeReplacementError: If it holds weights only as pickles.
        BrokenReplacementError: If the format cannot be told, or files are cut short, contradict one
            another or belong to another model.
        UnsupportedReplacementError: If an architecture, option, hook or format is not supported.
    """
    if not folder.is_dir():
        raise ReplacementNotFoundError(
            f"there is no replacement folder {folder.name!r}", replacement=folder.name
        )
    reading = _only_reading(folder, _files(folder), format)
    return saelens.read_set(reading.folders, architecture)


def _only_reading(folder: Path, files: Sequence[Path], format: SetFormat) -> Reading:
    readings = [
        found for found in _readings(files) if format in (SetFormat.AUTO, found.format) and found.folders
    ]
    if len(readings) == 1:
        return readings[0]
    _refuse_pickles(folder, files)
    listed = ", ".join(sorted(str(file.relative_to(folder)) for file in files)[:12]) or "nothing"
    if readings:
        names = ", ".join(reading.format.value for reading in readings)
        raise BrokenReplacementError(
            f"{folder.name} can be read as {names}; name the format. It holds {listed}", folder=folder.name
        )
    wanted = "any known format" if format is SetFormat.AUTO else f"format {format.value}"
    raise BrokenReplacementError(
        f"{folder.name} holds no replacement set of {wanted}. Known: {_KNOWN}. It holds {listed}",
        folder=folder.name,
    )


_KNOWN = "saelens (cfg.json with sae_weights.safetensors, alone or per sub folder)"


def _readings(files: Sequence[Path]) -> tuple[Reading, ...]:
    present = set(files)
    saelens_folders = tuple(
        file.parent for file in files if file.name == CONFIG and file.parent / saelens.WEIGHTS in present
    )
    return (Reading(format=SetFormat.SAELENS, folders=saelens_folders),)


def _refuse_pickles(folder: Path, files: Sequence[Path]) -> None:
    pickles = [file for file in files if file.suffix in _PICKLES]
    if pickles and not any(file.suffix == ".safetensors" for file in files):
        raise UnsafeReplacementError(
            f"{folder.name} holds weights only as pickles or arrays ({pickles[0].name}), which are never "
            "opened: a pickle runs code. Convert the set to safetensors with the library that wrote it",
            folder=folder.name,
            file=pickles[0].name,
        )


def _files(folder: Path) -> list[Path]:
    """List files down to a bounded depth, sorted; links that lead out of the folder are left out."""
    found, level = [], [folder]
    for _ in range(_DEPTH + 1):
        children = [child for parent in level for child in sorted(parent.iterdir())]
        found += [child for child in children if child.is_file()]
        level = [child for child in children if child.is_dir() and not child.is_symlink()]
    return sorted(found)
