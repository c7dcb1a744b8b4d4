"""What lies in a model's folder, links followed: of a parent's files none may be lost without a word."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from trephine.domain.errors import BrokenCheckpointError


def contents_of(folder: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """List all files below a folder, those of folders that are links among them.

    Returns:
        Their relative paths, ascending; and relative path of all else that is no folder -> what it is.

    Raises:
        BrokenCheckpointError: If a folder cannot be looked into, or a name is no UTF-8, which no manifest
            can hold.
    """
    files: list[str] = []
    others: dict[str, str] = {}
    for path, why in _below(folder, "", frozenset()):
        _require_spelled(path)
        if why:
            others[path] = why
        else:
            files.append(path)
    return tuple(sorted(files)), others


def _below(root: Path, inside: str, around: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Yield the path of all that is no folder, and why it is no file; empty of a file.

    Args:
        root: The folder.
        inside: Path of the folder inside it that is listed.
        around: Where the folders that it lies in are in truth: a link to one of them would never end.
    """
    here = root / inside
    around |= {os.path.realpath(here)}
    try:
        names = sorted(os.listdir(here))
    except OSError as error:
        where = f"the folder {inside} of the model" if inside else "the model's folder"
        raise BrokenCheckpointError(
            f"{where} cannot be looked into ({error.strerror}): make it readable, or take it out",
            file=inside,
        ) from error
    for name in names:
        path = f"{inside}/{name}" if inside else name
        if not (root / path).is_dir():
            yield path, _why_no_file(root / path)
        elif os.path.realpath(root / path) in around:
            yield path, "a link to a folder that it lies in"
        else:
            yield from _below(root, path, around)


def _why_no_file(path: Path) -> str:
    if path.is_file():
        return ""
    return "a link that leads nowhere" if path.is_symlink() else "no regular file"


def _require_spelled(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError:
        said = os.fsencode(path).decode("utf-8", "backslashreplace")
        raise BrokenCheckpointError(
            f"the model's folder holds {said}, whose name is no UTF-8: rename it, or take it out", file=said
        ) from None
