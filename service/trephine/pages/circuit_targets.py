"""What a circuit explains, for `metadata.info` of its JSON: the schema itself knows logits alone.

`targets` are in the order of the target nodes; `asked` is the question, with the whole vector of a direction.
A circuit that is read back explains what it did, and is told apart from others by it.
"""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite
from typing import Any

from trephine.domain.circuits import Circuit
from trephine.domain.targets import ExplainedTarget
from trephine.domain.tokens import Token
from trephine.pages.embed import printable


def told_targets(circuit: Circuit) -> dict[str, Any]:
    """Return `targets` and, where it is known, `asked`; everything is safe to encode as JSON."""
    told: dict[str, Any] = {"targets": [_target(one) for one in circuit.targets]}
    return told if circuit.asked is None else {**told, "asked": _printable(asdict(circuit.asked))}


def _target(target: ExplainedTarget) -> dict[str, Any]:
    return {
        "kind": target.kind.value,
        "label": printable(target.label),
        "position": target.position,
        "share": target.share,
        "value": target.value if isfinite(target.value) else None,
        "estimated": target.estimated,
        "token": _token(target.token),
        "against": _token(target.against),
        "replacement": printable(target.replacement),
    }


def _token(token: Token | None) -> dict[str, Any] | None:
    return None if token is None else {"id": token.id, "display": printable(token.display)}


def _printable(value: Any) -> Any:
    match value:
        case str():
            return printable(value)
        case dict():
            return {key: _printable(one) for key, one in value.items()}
        case list() | tuple():
            return [_printable(one) for one in value]
        case _:
            return value
