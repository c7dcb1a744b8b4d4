"""Runs of a bench that ended, kept in a file, so that an interrupted bench goes on where it stopped."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Any


class KeptRuns:
    """Answers of cells by what they were asked; a request may name the file of a `graph` beside them."""

    def __init__(self, path: Path) -> None:
        """Read what a former run kept in the file, if there is one."""
        self._path = path
        self._runs: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    def get(self, name: str, request: dict[str, Any]) -> dict[str, Any] | None:
        """Return the answer to the same request; None where there is none, or its graph is gone."""
        if request.get("graph") and self._latest(name) != _key(name, request):
            return None  # the file of the graph is another run's by now
        if request.get("graph") and not Path(request["graph"]).exists():
            return None
        return self._runs.get(_key(name, request))

    def keep(self, name: str, request: dict[str, Any], answer: dict[str, Any]) -> None:
        """Write an answer down, by one rename."""
        self._runs.pop(_key(name, request), None)
        self._runs[_key(name, request)] = answer | {"_wrote_graph": bool(request.get("graph"))}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self._runs))
        os.replace(partial, self._path)

    def _latest(self, name: str) -> str | None:
        """The last run of that name that wrote a graph."""
        wrote = [k for k, run in self._runs.items() if k.startswith(f"{name} ") and run["_wrote_graph"]]
        return wrote[-1] if wrote else None


def code_of(*names: str) -> str:
    """Digest the sources of packages and modules: in a request it makes a run of other code another one."""
    found = hashlib.sha256()
    for name in names:
        folder, sources = _sources(name)
        for source in sources:
            body = hashlib.sha256(source.read_bytes()).hexdigest()
            found.update(f"{name} {source.relative_to(folder).as_posix()} {body}\n".encode())
    return found.hexdigest()


def _sources(name: str) -> tuple[Path, list[Path]]:
    """Return a folder and the files below it: every source of a package, or a module's own."""
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0])
        return folder, sorted(folder.rglob("*.py"))
    if spec is None or not spec.has_location or spec.origin is None:
        raise ModuleNotFoundError(f"{name} is no package or module with sources of its own")
    return Path(spec.origin).parent, [Path(spec.origin)]


def _key(name: str, request: dict[str, Any]) -> str:
    body = json.dumps(request, sort_keys=True)
    return f"{name} {hashlib.sha256(body.encode()).hexdigest()[:16]}"
