"""What lies in a folder that somebody gave: every name, and what no exported folder may hold."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path


def contents_of(root: Path) -> tuple[list[str], list[str]]:
    """List what lies in a folder, and why it cannot be looked at.

    Returns:
        Names of all that is no folder, relative, with forward slashes, ascending; links into folders too.
        And what is wrong: folders that cannot be read, of whose files nobody knows, names that are no UTF-8,
        links, pipes and the like.
    """
    names, unread = list[str](), list[OSError]()
    for path, folders, files in os.walk(root, onerror=unread.append):
        inside = Path(path)
        links = [name for name in folders if (inside / name).is_symlink()]
        names += [(inside / name).relative_to(root).as_posix() for name in (*files, *links)]
    names.sort()
    return names, [*(_unread(root, error) for error in unread), *_strange(root, names)]


def printable_path(name: object) -> str:
    r"""Spell a path out: bytes of it that are no UTF-8 as `\xff`."""
    return os.fsencode(str(name)).decode("utf-8", "backslashreplace")


def _unread(root: Path, error: OSError) -> str:
    where = Path(os.fsdecode(error.filename or root))
    name = "the folder" if where == root else printable_path(where.relative_to(root))
    return f"{name}: cannot be looked into: {error.strerror}; what lies there was not checked"


def _strange(root: Path, names: list[str]) -> Iterator[str]:
    """What must not even be opened: pipes never end, and links show today what is elsewhere tomorrow."""
    for name in names:
        said = printable_path(name)
        if said != name:
            yield f"{said}: a name that is no UTF-8 was not published"
        try:
            mode = (root / name).lstat().st_mode
        except OSError as error:  # its folder may be listed and not entered, or somebody removed it
            yield f"{said}: cannot be looked at: {error.strerror}"
            continue
        if stat.S_ISLNK(mode):
            yield f"{said}: links are never published"
        elif not stat.S_ISREG(mode):
            yield f"{said}: is no regular file, and was not opened"
