"""What was measured of a global circuit, for `metadata.info` of its JSON.

`across` holds the figures; `influences` every node's share of the strength of all edges, by the node's id:
edges alone do not tell it, since their weights are in units of their targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite
from typing import Any

from trephine.domain.circuits import Circuit
from trephine.pages.embed import printable


def told_across(circuit: Circuit, shown: Mapping[str, int]) -> dict[str, Any]:
    """Return `across` and `influences`, of a circuit of a prompt nothing; what is no number is null.

    Args:
        circuit: What was discovered.
        shown: The nodes that the file shows, by id.
    """
    if circuit.across is None:
        return {}
    return {
        "across": _written(asdict(circuit.across)),
        "influences": {identity: circuit.nodes[index].influence for identity, index in shown.items()},
    }


def _written(value: Any) -> Any:
    match value:
        case float():
            return value if isfinite(value) else None
        case str():
            return printable(value)
        case dict():
            return {key: _written(one) for key, one in value.items()}
        case list() | tuple():
            return [_written(one) for one in value]
        case _:
            return value
