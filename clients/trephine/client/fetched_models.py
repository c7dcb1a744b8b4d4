"""Folders of models by name, found without a server: what `trephine models fetch` put into the cache."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path

from trephine.client.local_errors import LocalFileError


def model_folder(name: str | Path) -> Path:
    """Return a model's folder, given itself or as the name of a fetched model (`smollm2`, `models/smollm2`).

    A folder that is there wins over a name. Fetched models lie in `$TREPHINE_CACHE/models`, or in the
    user's own cache folder.

    Raises:
        LocalFileError: If there is neither, or no weights lie there.
    """
    folder = Path(name)
    if not folder.is_dir():
        known = Path(str(name).removeprefix("models/"))
        folder = _cache() / "models" / known
        if len(known.parts) != 1 or ".." in known.parts or not folder.is_dir():
            raise LocalFileError(
                f"{name} is neither a folder nor a fetched model: give the folder that the export was "
                "compiled from, or a name that `trephine models fetch` knows"
            )
    if not any(folder.glob("*.safetensors")):
        raise LocalFileError(
            f"{folder} holds no *.safetensors: give the folder that the export was compiled from"
        )
    return folder


def _cache() -> Path:
    given = os.environ.get("TREPHINE_CACHE")
    return Path(given) if given else user_cache_path("trephine")
