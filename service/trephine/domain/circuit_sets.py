"""Whether a set that is loaded is the one that a circuit was found with."""

from __future__ import annotations

from trephine.domain.circuits import GraphSet
from trephine.domain.errors import ParentChangedError


def require_same_set(found: GraphSet, loaded: str) -> None:
    """Refuse another set that has the name of a circuit's own; a circuit that does not say passes.

    Args:
        found: The set as the circuit was found with it.
        loaded: Content hash of the loaded set of that name.

    Raises:
        ParentChangedError: If their contents differ.
    """
    if found.content_hash not in ("", loaded):
        raise ParentChangedError(
            f"the circuit was found with other features than those of the set {found.name!r} that is loaded "
            f"(content {loaded[:12]}, the circuit's is {found.content_hash[:12]}); load the set that it was "
            "found with, or discover it again",
            circuit_set=found.content_hash,
            loaded_set=loaded,
        )
