"""Model roots: the only folders that models are read from (DESIGN 5.12)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from trephine.app.names import id_in
from trephine.domain.errors import ModelNotFoundError, PathDeniedError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class ModelRoots:
    """Folders whose sub folders are models, and the folder where exports are published."""

    def __init__(self, roots: Iterable[Path], *, export_root: Path) -> None:
        self._export_root = export_root.expanduser().resolve()
        self._roots: list[Path] = []
        for root in roots:
            self.add(root)

    def add(self, root: Path) -> None:
        """Allow a folder; adding it again changes nothing."""
        resolved = root.expanduser().resolve()
        if resolved not in self._roots:
            self._roots.append(resolved)

    def names(self) -> tuple[str, ...]:
        """Names of the model folders that are found, sorted."""
        found = {
            folder.name
            for root in self._roots
            if root.is_dir()
            for folder in root.iterdir()
            if _NAME.fullmatch(folder.name) and (folder / "config.json").is_file()
        }
        return tuple(sorted(found))

    def folder(self, source: str) -> Path:
        """Find a model: a name in a root, `exports/NAME`, or an absolute folder inside a root.

        Raises:
            ModelNotFoundError: If there is no such folder; the message lists what there is.
            PathDeniedError: If it lies outside every root, be it through a symbolic link.
        """
        if "\0" in source:
            raise self._missing(source)
        if source.startswith("exports/"):
            folder = self._export_root / id_in("exports", source)
        elif source.startswith("/"):
            folder = Path(source)
        else:
            folder = self._named(source.removeprefix("models/"))
        real = self._require_inside(folder)
        if not real.is_dir():
            raise self._missing(source)
        for entry in real.iterdir():
            if entry.is_symlink():
                self._require_inside(entry)
        return real

    def _named(self, name: str) -> Path:
        if not _NAME.fullmatch(name) or ".." in name:
            raise self._missing(name)
        for root in self._roots:
            if (root / name).exists():
                return root / name
        raise self._missing(name)

    def _require_inside(self, path: Path) -> Path:
        real = path.resolve()
        if not any(real.is_relative_to(root) for root in (*self._roots, self._export_root)):
            raise PathDeniedError(
                f"{path.name!r} lies outside the model roots; move it into one, or start the server "
                "with --model-root for its folder",
                field="source",
            )
        return real

    def _missing(self, source: str) -> ModelNotFoundError:
        names = ", ".join(self.names()) or "none"
        return ModelNotFoundError(
            f"there is no model {source!r}; the model roots hold: {names}", field="source"
        )
