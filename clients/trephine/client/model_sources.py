"""How a name or a folder becomes something to load."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from trephine.client.errors import InvalidRequestError, ModelNotFoundError
from trephine.client.leases import Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is to be loaded."""

    source: str
    """A name in a model root, an export (`exports/...`), or an absolute folder of this machine."""
    folder: Path | None
    """Set if it is a folder, which the server must be allowed to read first."""


def source_of(name_or_folder: str | os.PathLike[str]) -> Source:
    """Tell a name from a folder: a folder is written with a slash, a dot or a tilde in front.

    Raises:
        ModelNotFoundError: If it is written as a folder and there is none.
    """
    text = os.fspath(name_or_folder)
    looks_like_path = text.startswith((".", "~", os.sep)) or not isinstance(name_or_folder, str)
    if text.startswith(("models/", "exports/")) and not looks_like_path:
        return Source(source=text.removeprefix("models/"), folder=None)
    if not looks_like_path and os.sep not in text:
        return Source(source=text, folder=None)
    folder = Path(text).expanduser().resolve()
    if not folder.is_dir():
        raise ModelNotFoundError(f"there is no folder {folder}; a name has no slash in it, as in 'smollm2'")
    return Source(source=str(folder), folder=folder)


def share_folder(source: Source, lease: Lease | None) -> None:
    """Let a local server read the folder.

    Raises:
        InvalidRequestError: If the server is elsewhere: paths of this machine mean nothing there.
    """
    if source.folder is None:
        return
    if lease is None:
        raise InvalidRequestError(
            "a named server loads models from its own roots, by name; "
            "leave --server out to open a folder of this machine",
            field="source",
        )
    lease.add_root(source.folder)
