"""What this installation is, where its folders lie, and whether there is room."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from trephine.server.fetch import NAMES, SOURCE_FILE
from trephine.server.places import default_cache, default_state

PACKAGES = ("trephine", "torch", "transformers", "safetensors", "grpcio", "protobuf", "pydantic", "dbos")
EXTRAS = {
    "service": ("torch", "transformers", "dbos", "fsspec", "filelock", "jinja2", "interp_engine"),
    "ray": ("ray",),
    "s3": ("s3fs",),
    "vllm": ("vllm",),
}


def examine(state: Path | None = None) -> dict[str, Any]:
    """Collect everything that a report of a problem should say.

    Args:
        state: State folder; unset: the user's own.
    """
    cache, state = default_cache(), state or default_state()
    return {
        "python": f"{platform.python_version()} at {sys.executable}",
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "extras": {extra: _missing(modules) or "present" for extra, modules in EXTRAS.items()},
        "cache": _folder(cache),
        "state": _folder(state),
        "models": {name: _model(cache / "models" / name) for name in NAMES},
        "memory_free_mib": psutil.virtual_memory().available >> 20,
        "cores": psutil.cpu_count() or 0,
    }


def render(facts: dict[str, Any]) -> str:
    """Write the facts as indented lines."""
    lines = []
    for key, value in facts.items():
        if isinstance(value, dict):
            lines.append(f"{key}:")
            lines += [f"  {name}: {inner}" for name, inner in value.items()]
        else:
            lines.append(f"{key}: {value}")
    return "\n".join(lines)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _missing(modules: tuple[str, ...]) -> str:
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"absent: {', '.join(absent)}" if absent else ""


def _folder(path: Path) -> str:
    """A folder and what is free on its disk, which is asked of the nearest folder that exists."""
    existing = next(one for one in (path, *path.parents) if one.exists())
    return f"{path} ({shutil.disk_usage(existing).free >> 20} MiB free)"


def _model(folder: Path) -> str:
    return str(folder) if (folder / SOURCE_FILE).is_file() else "not fetched"
