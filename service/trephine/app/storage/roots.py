"""Roots: the only folders that models and replacement sets are read from (DESIGN 5.12)."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trephine.app.storage.names import id_in
from trephine.app.storage.revisions import commit_of, has_revisions
from trephine.domain.errors import (
    ModelNotFoundError,
    PathDeniedError,
    ReplacementNotFoundError,
    TrephineError,
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SET_FILES = ("cfg.json", "config.yaml", "config.json", "*.safetensors", "*/cfg.json", "*/*.safetensors")
"""What a folder that may hold a replacement set has at least one of."""


class Roots(ABC):
    """Folders whose sub folders can be named. What a client shares beside is found by its path alone."""

    what = "roots"
    flag = "--model-root"

    def __init__(self, roots: Iterable[Path]) -> None:
        self._roots: list[Path] = []
        self._shared: list[Path] = []
        for root in roots:
            self.add(root)

    def add(self, root: Path) -> None:
        """Allow a folder; adding it again changes nothing."""
        resolved = root.expanduser().resolve()
        if resolved not in self._roots:
            self._roots.append(resolved)

    def share(self, folder: Path) -> None:
        """Allow a folder and what is in it by path; its sub folders get no names."""
        resolved = folder.expanduser().resolve()
        if resolved not in self._shared:
            self._shared.append(resolved)

    def names(self) -> tuple[str, ...]:
        """Names of the folders that are found, sorted."""
        found = {
            folder.name
            for root in self._roots
            if root.is_dir()
            for folder in root.iterdir()
            if _NAME.fullmatch(folder.name) and self._is_one(folder)
        }
        return tuple(sorted(found))

    def _is_one(self, folder: Path) -> bool:
        return folder.is_dir()

    def _named(self, name: str) -> Path:
        if not _NAME.fullmatch(name) or ".." in name:
            raise self._missing(name)
        for root in self._roots:
            if (root / name).exists():
                return root / name
        raise self._missing(name)

    def _require_inside(self, path: Path, *more: Path) -> Path:
        real = path.resolve()
        if not any(real.is_relative_to(root) for root in (*self._roots, *self._shared, *more)):
            raise PathDeniedError(
                f"{path.name!r} lies outside the {self.what}; move it into one, or start the server "
                f"with {self.flag} for its folder",
                field="source",
            )
        return real

    def _require_links_inside(self, folder: Path, *more: Path) -> None:
        """Refuse a folder that leads outside, be it by a link in a folder that it links to."""
        ahead, known = [folder], {folder}
        while ahead:
            for place, folders, files in os.walk(ahead.pop()):
                for entry in (Path(place, name) for name in (*folders, *files)):
                    if entry.is_symlink():
                        real = self._require_inside(entry, *more)
                        if real.is_dir() and real not in known:
                            known.add(real)
                            ahead.append(real)

    @abstractmethod
    def _missing(self, source: str) -> TrephineError:
        """Say that there is no such source, and what there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """A folder to read a model from."""

    folder: Path
    """Resolved, inside a root, with whatever it links to."""
    name: str
    """What the source is called: the folder's own name, not a snapshot's."""
    revision: str | None
    """The commit, for a snapshot of Hugging Face's cache."""


class ModelRoots(Roots):
    """Folders whose sub folders are models, and the folder where exports are published."""

    what = "model roots"

    def __init__(self, roots: Iterable[Path], *, export_root: Path) -> None:
        self._export_root = export_root.expanduser().resolve()
        super().__init__(roots)

    def find(self, source: str, revision: str | None = None) -> FoundModel:
        """Find a model: a name in a root, `exports/NAME`, or an absolute folder inside a root.

        A folder of Hugging Face's cache means its snapshot `revision`, or that of `refs/main`. Its files
        are links to the folder's `blobs`, which must lie inside a root too.

        Raises:
            ModelNotFoundError: If there is no such folder or revision; the message lists what there is.
            InvalidRequestError: If a plain folder is asked for a revision.
            PathDeniedError: If it lies outside every root, be it through a symbolic link.
        """
        own = self._require_inside(self._place(source), self._export_root)
        if not own.is_dir():
            raise self._missing(source)
        commit = commit_of(own, revision)
        real = own if commit is None else self._require_inside(own / "snapshots" / commit)
        self._require_links_inside(real, self._export_root)
        return FoundModel(folder=real, name=own.name, revision=commit)

    def _place(self, source: str) -> Path:
        if "\0" in source:
            raise self._missing(source)
        if source.startswith("exports/"):
            return self._export_root / id_in("exports", source)
        if source.startswith("/"):
            return Path(source)
        return self._named(source.removeprefix("models/"))

    def _is_one(self, folder: Path) -> bool:
        cached = folder.name.startswith("models--") and has_revisions(folder)
        return cached or (folder / "config.json").is_file()

    def _missing(self, source: str) -> ModelNotFoundError:
        names = ", ".join(self.names()) or "none"
        return ModelNotFoundError(
            f"there is no model {source!r}; the model roots hold: {names}", field="source"
        )


class ReplacementRoots(Roots):
    """Folders whose sub folders are replacement sets. Fitted sets are published in the first one."""

    what = "replacement roots"
    flag = "--replacement-root"

    @property
    def publishing(self) -> Path:
        """Where fitted sets are published."""
        return self._roots[0]

    def folder(self, source: str) -> Path:
        """Find a set: a name in a root, or an absolute folder inside a root or shared by a client.

        Raises:
            ReplacementNotFoundError: If there is no such folder; the message lists what there is.
            PathDeniedError: If it lies outside every root, be it through a symbolic link.
        """
        if not source or "\0" in source:
            raise self._missing(source)
        path = Path(source) if source.startswith("/") else self._named(source.removeprefix("replacements/"))
        real = self._require_inside(path)
        if not real.is_dir():
            raise self._missing(source)
        self._require_links_inside(real)
        return real

    def _is_one(self, folder: Path) -> bool:
        return folder.is_dir() and any(any(folder.glob(pattern)) for pattern in _SET_FILES)

    def _missing(self, source: str) -> ReplacementNotFoundError:
        names = ", ".join(self.names()) or "none"
        return ReplacementNotFoundError(
            f"there is no replacement set {source!r}; the replacement roots hold: {names}. "
            "Name one of them, or give the folder of a set",
            field="source",
        )
