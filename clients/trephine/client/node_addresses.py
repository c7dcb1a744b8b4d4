"""How people write nodes of circuits: `12:345@6`, `my-set:12:345@6`, `error:3@6`, `token@2`, `target`.

Nodes of many contexts, which lie at no single position, are at `all`: `12:345@all`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from trephine.client.errors import InvalidRequestError
from trephine.client.types import CircuitInfo, Node, NodeKind

_FEATURE = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*:)?\d+:\d+@(?:\d+|all)")
_OTHER = re.compile(r"(?:token|error(?::\d+(?::[a-z_]+)?)?)@(?:\d+|all)|target")
_MLP, _TARGET = "mlp_out", "target"


def address(node: Node, sets: Sequence[str] = ()) -> str:
    """A node as it is written: `12:345@6`, `error:3@6`, `error:3:attn_out@6`, `token@2`, `target`.

    Args:
        node: The node.
        sets: What its circuit spans; where there are several a feature's set stands in front.
    """
    match node.kind:
        case NodeKind.FEATURE if node.feature is not None:
            plain = f"{node.layer}:{node.feature.index}@{placed(node)}"
            return f"{node.feature.replacement or 'neurons'}:{plain}" if len(sets) > 1 else plain
        case NodeKind.ERROR:
            return f"{error_of(node.layer, node.error_site)}@{placed(node)}"
        case NodeKind.TOKEN:
            return f"token@{placed(node)}"
        case _:
            return _TARGET


def placed(node: Node) -> str:
    """Where a node lies: a position, or `all`."""
    return str(node.position) if node.position >= 0 else "all"


def error_of(layer: int, site: str) -> str:
    """The error of a layer's MLP, or of another site in it, at any position."""
    return f"error:{layer}" if site in ("", _MLP) else f"error:{layer}:{site}"


def found_nodes(circuit: CircuitInfo, nodes: Sequence[Node], addresses: Sequence[str]) -> tuple[int, ...]:
    """Indices of nodes by their addresses.

    Args:
        circuit: The circuit.
        nodes: All of its nodes.
        addresses: What is looked for; of a feature the set may be left out where one alone has it.

    Raises:
        InvalidRequestError: If a text is no address, the circuit has no such node, several sets do, or it is
            `target` where there are several.
    """
    known: dict[str, list[int]] = {}
    for node in sorted(nodes, key=lambda one: one.index):
        for text in _addresses(node):
            known.setdefault(text, []).append(node.index)
    by_index = {node.index: node for node in nodes}
    return tuple(_one(circuit, known, by_index, text) for text in addresses)


def _addresses(node: Node) -> set[str]:
    """Every form that a node may be written in."""
    texts = {address(node), address(node, ("", ""))}
    if node.error_site == _MLP:
        texts.add(f"error:{node.layer}:{_MLP}@{placed(node)}")
    return texts


def _one(circuit: CircuitInfo, known: dict[str, list[int]], by_index: dict[int, Node], text: str) -> int:
    found = known.get(text, [])
    if len(found) > 1 and _FEATURE.fullmatch(text):
        candidates = " or ".join(address(by_index[index], circuit.set_names) for index in found)
        raise InvalidRequestError(f"{circuit.name} has {text} in several sets; write {candidates}")
    if len(found) > 1 and text == _TARGET:
        candidates = ", ".join(f"{index} ({by_index[index].label})" for index in found)
        raise InvalidRequestError(f"{circuit.name} explains several targets; name one by index: {candidates}")
    if found:
        return found[0]
    if _FEATURE.fullmatch(text) or _OTHER.fullmatch(text):
        raise InvalidRequestError(f"{circuit.name} has no node {text}; see `trephine circuits nodes`")
    raise InvalidRequestError(
        f"{text!r} is no node; write an index, [SET:]LAYER:INDEX@POSITION, error:LAYER[:SITE]@POSITION, "
        "token@POSITION or target"
    )
