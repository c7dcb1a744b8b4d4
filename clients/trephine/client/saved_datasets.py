"""Folders that the `datasets` library saved (`save_to_disk`), read by that library where it is installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trephine.client.errors import LocalFileError

_INSTALL = "pip install 'trephine[datasets]'"
_ONE, _SEVERAL = "state.json", "dataset_dict.json"


def is_saved(folder: Path) -> bool:
    """True if `datasets` saved it."""
    return any((folder / name).exists() for name in (_ONE, _SEVERAL))


def saved_rows(folder: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a saved data set; numbers of classes as their names.

    Raises:
        LocalFileError: If the library is missing, or the folder holds several splits, or cannot be read.
    """
    if (folder / _SEVERAL).exists():
        splits = sorted(each.name for each in folder.iterdir() if (each / _ONE).exists())
        raise LocalFileError(f"{folder} holds the splits {', '.join(splits)}; give the folder of one of them")
    try:
        from datasets import ClassLabel, load_from_disk
    except ImportError as missing:
        raise LocalFileError(
            f"{folder} was saved by `datasets`, not installed here: {_INSTALL}, or save as JSON lines"
        ) from missing
    try:
        loaded = load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as failure:
        raise LocalFileError(f"cannot read {folder} as a saved data set: {failure}") from failure
    named = {name: kind for name, kind in loaded.features.items() if isinstance(kind, ClassLabel)}
    for row in loaded:
        yield {name: _shown(value, named.get(name)) for name, value in row.items()}


def _shown(value: Any, classes: Any) -> Any:
    return value if classes is None or value is None or value < 0 else classes.int2str(value)
