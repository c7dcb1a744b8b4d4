"""How nodes of circuits are written on the command line, and shown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from trephine.client.circuit import Circuit
from trephine.client.cli.discover import known
from trephine.client.cli.output import Output
from trephine.client.errors import InvalidRequestError
from trephine.client.types import Node, NodeKind

NODE_HELP = "An index, LAYER:INDEX@POSITION, error:LAYER[:SITE]@POSITION, token@POSITION, or target."
NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help=NODE_HELP)]
NodesArgument = Annotated[list[str], typer.Argument(metavar="NODE...", help=NODE_HELP)]

_FEATURE = re.compile(r"(?P<layer>\d+):(?P<index>\d+)@(?P<position>\d+)")
_OTHER = re.compile(
    r"(?P<kind>token|error)(?::(?P<layer>\d+)(?::(?P<site>[a-z_]+))?)?@(?P<position>\d+)|target"
)

_MLP = "mlp_out"


def node_indices(circuit: Circuit, texts: Sequence[str]) -> tuple[int, ...]:
    """Indices of nodes, as people write them.

    Raises:
        InvalidRequestError: If a text is no address, or the circuit has no such node.
    """
    known: dict[str, int] = {}
    if not all(text.isdecimal() for text in texts):
        nodes = circuit.nodes()
        known = {address(node): node.index for node in reversed(nodes)}
        known |= {
            f"error:{node.layer}:{_MLP}@{node.position}": node.index
            for node in nodes
            if node.error_site == _MLP
        }
        targets = [node.index for node in nodes if node.kind is NodeKind.LOGIT]
        known["target"] = min(targets, default=-1)
    return tuple(int(text) if text.isdecimal() else _found(circuit, known, text) for text in texts)


def _found(circuit: Circuit, known: Mapping[str, int], text: str) -> int:
    if text in known:
        return known[text]
    if _FEATURE.fullmatch(text) or _OTHER.fullmatch(text):
        raise InvalidRequestError(f"{circuit.name} has no node {text}; see `trephine circuits nodes`")
    raise InvalidRequestError(
        f"{text!r} is no node; write an index, LAYER:INDEX@POSITION, error:LAYER[:SITE]@POSITION, "
        "token@POSITION or target"
    )


def address(node: Node) -> str:
    """A node as it is written: `12:345@6`, `error:3@6`, `error:3:attn_out@6`, `token@2`, `target`."""
    match node.kind:
        case NodeKind.FEATURE if node.feature is not None:
            return f"{node.layer}:{node.feature.index}@{node.position}"
        case NodeKind.ERROR:
            return f"{error_of(node.layer, node.error_site)}@{node.position}"
        case NodeKind.TOKEN:
            return f"token@{node.position}"
        case _:
            return "target"


def error_of(layer: int, site: str) -> str:
    """The error of a layer's MLP, or of another site in it, at any position."""
    return f"error:{layer}" if site in ("", _MLP) else f"error:{layer}:{site}"


def called(node: Node) -> str:
    """What a node is called: as somebody said, or as it was found."""
    return node.given_label.text if node.given_label else node.label


def print_nodes(output: Output, nodes: Sequence[Node]) -> None:
    """A table of nodes."""
    columns = ("INDEX", "NODE", "INFLUENCE", "EFFECT", "ACTIVATION", "PIN", "GROUP", "CALLED", "PROMOTES")
    rows = (
        (
            str(node.index),
            address(node),
            f"{node.influence:.4f}",
            known(node.effect, "+.3f"),
            known(node.activation, "+.3f"),
            "*" if node.pinned else "",
            node.group,
            called(node),
            " ".join(repr(token) for token in node.promotes[:3]),
        )
        for node in nodes
    )
    output.table(columns, rows)
