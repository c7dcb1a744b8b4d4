"""Opening a set: which format it is, and that format's reader."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trephine.domain.errors import (
    BrokenReplacementError,
    ReplacementNotFoundError,
    UnsafeReplacementError,
    UnsupportedReplacementError,
)
from trephine.domain.replacements import SetFormat
from trephine.engine.models.architecture import Architecture
from trephine.engine.replacements.formats import (
    circuit_tracer,
    circuit_tracer_clt,
    gemma_scope,
    saelens,
    sparsify,
)
from trephine.engine.replacements.formats.saelens_config import CONFIG
from trephine.engine.replacements.formats.tensors import open_tensors
from trephine.engine.replacements.layer import ReadSet

UNVERIFIED: Final = frozenset({SetFormat.GEMMA_SCOPE_2_CLT})
"""Formats for which no writer could be had; they are read by their layout alone."""

_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".npz", ".npy")
_DEPTH = 4
"""Folders below the set's own that are searched; releases nest `layer_3/width_16k/average_l0_21`."""
_LISTED = 12
"""Files that a message lists at most."""
_TWO_HALVES = re.compile(r"^W_(enc|dec)_(\d+)\.safetensors$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A format as it lies on disk."""

    files: str
    """For messages."""
    folders: Callable[[Sequence[Path]], tuple[Path, ...]]
    """Finds the folders that hold it among a set's files."""
    read: Callable[[Sequence[Path], Architecture], ReadSet]


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
    files = _files(folder)
    found, folders = _only_reading(folder, files, format)
    _refuse_halves(folder, files)
    if found in UNVERIFIED and not allow_unverified:
        raise UnsupportedReplacementError(
            f"{folder.name} is of format {found.value}, for which no writer could be had to test against; "
            "it is read by its layout alone. To load it all the same, pass allow_unverified "
            "(--unverified-format)",
            format=found.value,
        )
    return LAYOUTS[found].read(folders, architecture)


def _only_reading(
    folder: Path, files: Sequence[Path], format: SetFormat
) -> tuple[SetFormat, tuple[Path, ...]]:
    wanted = LAYOUTS if format is SetFormat.AUTO else {format: LAYOUTS[format]}
    readings = {name: folders for name, layout in wanted.items() if (folders := layout.folders(files))}
    if len(readings) == 1:
        return next(iter(readings.items()))
    _refuse_pickles(folder, files)
    listed = ", ".join(str(file.relative_to(folder)) for file in files[:_LISTED]) or "nothing"
    if readings:
        raise BrokenReplacementError(
            f"{folder.name} can be read as {' and as '.join(name.value for name in readings)}; name the "
            f"format. It holds {listed}",
            folder=folder.name,
        )
    known = "; ".join(f"{name.value}: {layout.files}" for name, layout in wanted.items())
    raise BrokenReplacementError(
        f"{folder.name} holds no replacement set of a known format ({known}). It holds {listed}",
        folder=folder.name,
    )


def _holding(config: str, weights: str) -> Callable[[Sequence[Path]], tuple[Path, ...]]:
    """Find every folder with a configuration and weights of these names."""

    def find(files: Sequence[Path]) -> tuple[Path, ...]:
        present = set(files)
        return tuple(f.parent for f in files if f.name == config and f.parent / weights in present)

    return find


def _tracer_folders(files: Sequence[Path]) -> tuple[Path, ...]:
    return _parents_with_config(files, circuit_tracer.LAYER_FILE.match)


def _tracer_clt_folders(files: Sequence[Path]) -> tuple[Path, ...]:
    return _parents_with_config(files, circuit_tracer_clt.ENCODER_FILE.match)


def _parents_with_config(files: Sequence[Path], matches: Callable[[str], object]) -> tuple[Path, ...]:
    parents = sorted({file.parent for file in files if matches(file.name)})
    return tuple(parent for parent in parents if parent / circuit_tracer.CONFIG in files)


def _gemma_folders(files: Sequence[Path]) -> tuple[Path, ...]:
    layered = [file for file in files if gemma_scope.LAYER_FILE.search(file.name)]
    first_of = {file.parent: file for file in reversed(layered)}
    return tuple(parent for parent, file in sorted(first_of.items()) if "w_dec" in open_tensors(file).entries)


def _one(read: Callable[[Path, Architecture], ReadSet]) -> Callable[[Sequence[Path], Architecture], ReadSet]:
    """Read a format that keeps all layers in one folder."""

    def read_only(folders: Sequence[Path], architecture: Architecture) -> ReadSet:
        if len(folders) != 1:
            raise BrokenReplacementError(
                f"several sets lie here ({', '.join(folder.name for folder in folders)}); name one of them"
            )
        return read(folders[0], architecture)

    return read_only


LAYOUTS: Final[Mapping[SetFormat, Layout]] = {
    SetFormat.SAELENS: Layout(
        files="cfg.json and sae_weights.safetensors, alone or in a sub folder per layer",
        folders=_holding(CONFIG, saelens.WEIGHTS),
        read=saelens.read_set,
    ),
    SetFormat.SPARSIFY: Layout(
        files="cfg.json and sae.safetensors in a sub folder per module path",
        folders=_holding(sparsify.CONFIG, sparsify.WEIGHTS),
        read=sparsify.read_set,
    ),
    SetFormat.CIRCUIT_TRACER: Layout(
        files="config.yaml and layer_0.safetensors, ...",
        folders=_tracer_folders,
        read=_one(circuit_tracer.read_set),
    ),
    SetFormat.CIRCUIT_TRACER_CLT: Layout(
        files="config.yaml, W_enc_0.safetensors and W_dec_0.safetensors, ...",
        folders=_tracer_clt_folders,
        read=_one(circuit_tracer_clt.read_set),
    ),
    SetFormat.GEMMA_SCOPE_2_CLT: Layout(
        files="..layer_0.safetensors, ... with w_enc and w_dec",
        folders=_gemma_folders,
        read=_one(gemma_scope.read_set),
    ),
}


def _refuse_halves(folder: Path, files: Sequence[Path]) -> None:
    """A layer that lacks one of its two files must not be left out of a set in silence."""
    names: dict[Path, set[str]] = {}
    for file in files:
        names.setdefault(file.parent, set()).add(file.name)
    for parent, present in sorted(names.items()):
        for missing in _missing_halves(present):
            raise BrokenReplacementError(
                f"{parent.relative_to(folder.parent)} lacks {missing}; fetch it again, or take the layer "
                "out of the set",
                folder=folder.name,
                file=missing,
            )


def _missing_halves(present: set[str]) -> Iterator[str]:
    weights = {saelens.WEIGHTS, sparsify.WEIGHTS} & present
    if weights and CONFIG not in present:
        yield CONFIG
    if CONFIG in present and not weights:
        yield saelens.WEIGHTS
    for name in sorted(present):
        half = _TWO_HALVES.match(name)
        if half is not None:
            other = f"W_{'dec' if half[1] == 'enc' else 'enc'}_{half[2]}.safetensors"
            if other not in present:
                yield other


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
    """List files down to a bounded depth, sorted; linked folders are not followed."""
    found, level = [], [folder]
    for _ in range(_DEPTH + 1):
        children = [child for parent in level for child in sorted(parent.iterdir())]
        found += [child for child in children if child.is_file()]
        level = [child for child in children if child.is_dir() and not child.is_symlink()]
    return sorted(found)
