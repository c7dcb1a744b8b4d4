"""Everything the engine can carry out, merged from the modules that do it. Importing this imports torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.util import find_spec

from trephine.engine.session import Handler


def merge(parts: Iterable[Mapping[type, Handler]]) -> dict[type, Handler]:
    """Merge tables of handlers.

    Raises:
        TypeError: If two modules serve the same command.
    """
    merged: dict[type, Handler] = {}
    for part in parts:
        if twice := merged.keys() & part.keys():
            raise TypeError(f"two modules serve {', '.join(command.__name__ for command in twice)}")
        merged.update(part)
    return merged


MODULES = (
    "session",
    "loading",
    "text",
    "generation",
    "scoring",
    "activations",
    "effects",
    "proposals",
    "discovery",
    "planning",
    "export",
)

HANDLERS = merge(
    import_module(f"trephine.engine.{name}").HANDLERS
    for name in MODULES
    if find_spec(f"trephine.engine.{name}") is not None
)
