"""Folders that the `datasets` library saved (`save_to_disk`), read by that library where it is installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trephine.client.errors import LocalFileError

_INSTALL = "pip install 'trephine[datasets]'"
_ONE, _SEVERAL = "state.json", "dataset_dict.json"
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError)
"""What that library raises where its files are not as it wrote them."""
_SAID = 300
"""Characters of what it says: it may quote whole tables."""


def is_saved(folder: Path) -> bool:
    """True if `datasets` saved it."""
    return any((folder / name).exists() for name in (_ONE, _SEVERAL))


def saved_rows(folder: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a saved data set; numbers of classes as their names, -1, which is no class, as None.

    Of a folder of splits the only one is read.

    Raises:
        LocalFileError: If the library is missing, or the folder holds several splits, or cannot be read.
    """
    if (folder / _SEVERAL).exists():
        folder = _only_split(folder)
    try:
        from datasets import ClassLabel, load_from_disk
    except ImportError as missing:
        raise LocalFileError(
            f"{folder} was saved by `datasets`, not installed here: {_INSTALL}, or save as JSON lines"
        ) from missing
    try:
        loaded = load_from_disk(str(folder))
        for name, kind in loaded.features.items():
            if getattr(kind, "decode", False):  # a picture or a sound: never a text, and not to be opened
                loaded = loaded.cast_column(name, replace(kind, decode=False))
        named = {name: kind for name, kind in loaded.features.items() if isinstance(kind, ClassLabel)}
        for row in loaded:
            yield {name: _shown(value, named.get(name)) for name, value in row.items()}
    except _UNREADABLE as failure:
        said = str(failure)[:_SAID]
        raise LocalFileError(f"cannot read {folder} as a saved data set: {said}") from failure


def _only_split(folder: Path) -> Path:
    splits = sorted(each for each in folder.iterdir() if (each / _ONE).exists())
    if not splits:
        raise LocalFileError(
            f"{folder} was saved as splits, and none of them is there; save the data set again, or give the "
            "folder of one split"
        )
    if len(splits) > 1:
        names = ", ".join(each.name for each in splits)
        raise LocalFileError(f"{folder} holds the splits {names}; give the folder of one of them")
    return splits[0]


def _shown(value: Any, classes: Any) -> Any:
    if classes is None or value is None:
        return value
    return None if value < 0 else classes.int2str(value)
