"""Whether a set that is loaded is the one that a circuit was found with."""

from __future__ import annotations

from trephine.domain.circuits import Circuit
from trephine.domain.errors import ParentChangedError


def require_same_set(circuit: Circuit, loaded: str) -> None:
    """Refuse another set that has the name of a circuit's own; a circuit that does not say passes.

    Args:
        circuit: Found with a replacement set.
        loaded: Content hash of the loaded set of that name.

    Raises:
        ParentChangedError: If their contents differ.
    """
    if circuit.set_hash not in ("", loaded):
        raise ParentChangedError(
            f"the circuit was found with other features than those of the set {circuit.replacement!r} that "
            f"is loaded (content {loaded[:12]}, the circuit's is {circuit.set_hash[:12]}); load the set that "
            "it was found with, or discover it again",
            circuit_set=circuit.set_hash,
            loaded_set=loaded,
        )
