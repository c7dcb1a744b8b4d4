"""How a name or a folder becomes something to load: a model, or a replacement set."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trephine.client.errors import ModelNotFoundError, ReplacementNotFoundError, TrephineError
from trephine.client.leases import Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceKind:
    """What is loaded from names and folders."""

    collection: str
    """Resource names of it begin so; a name is given with that or without."""
    kept: tuple[str, ...]
    """Other names that hold a slash and are sent as they are."""
    missing: type[TrephineError]
    """Raised where a folder is meant and there is none."""
    named: str
    """How a name is told from a folder, in words."""
    elsewhere: str
    """What a server that is named reads instead of folders of this machine, in words."""
    share: Callable[[Lease, Path], None]
    """Lets a local server read a folder."""


MODEL = SourceKind(
    collection="models/",
    kept=("exports/",),
    missing=ModelNotFoundError,
    named="a name has no slash in it, as in 'smollm2'",
    elsewhere="loads models from its own roots, by name",
    share=Lease.add_root,
)
REPLACEMENT_SET = SourceKind(
    collection="replacements/",
    kept=(),
    missing=ReplacementNotFoundError,
    named="the name of a set in a replacement root has no slash in it",
    elsewhere="reads replacement sets and datasets from its own roots, by name",
    share=Lease.share_replacements,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What is to be loaded."""

    kind: SourceKind
    source: str
    """A name in a root of the server, an export (`exports/...`), or an absolute folder of this machine."""
    folder: Path | None
    """Set if it is a folder, which the server must be allowed to read first."""


def source_of(name_or_folder: str | os.PathLike[str], kind: SourceKind = MODEL) -> Source:
    """Tell a name from a folder: a folder is written with a slash, a dot or a tilde in front.

    Raises:
        ModelNotFoundError, ReplacementNotFoundError: If it is written as a folder and there is none.
    """
    text = os.fspath(name_or_folder)
    written_as_folder = not isinstance(name_or_folder, str) or text.startswith((".", "~", os.sep))
    written_as_name = os.sep not in text or text.startswith((kind.collection, *kind.kept))
    if written_as_name and not written_as_folder:
        return Source(kind=kind, source=text.removeprefix(kind.collection), folder=None)
    folder = Path(text).expanduser().resolve()
    if not folder.is_dir():
        raise kind.missing(f"there is no folder {folder}; {kind.named}")
    return Source(kind=kind, source=str(folder), folder=folder)
