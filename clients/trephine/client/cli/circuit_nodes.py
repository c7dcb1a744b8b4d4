"""How nodes of circuits are written on the command line, and shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from trephine.client.circuit import Circuit
from trephine.client.cli.discover import known, token_at
from trephine.client.cli.output import Output
from trephine.client.node_addresses import address
from trephine.client.types import CircuitInfo, Node

NODE_HELP = "An index, [SET:]LAYER:INDEX@POSITION, error:LAYER[:SITE]@POSITION, token@POSITION, or target."
NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help=NODE_HELP)]
NodesArgument = Annotated[list[str], typer.Argument(metavar="NODE...", help=NODE_HELP)]


def node_indices(circuit: Circuit, texts: Sequence[str]) -> tuple[int, ...]:
    """Indices of nodes, as people write them; nothing is asked where all are indices.

    Raises:
        InvalidRequestError: If a text is no address, or the circuit has no such node, or several.
    """
    named = [text for text in texts if not text.isdecimal()]
    found = dict(zip(named, circuit.find(*named), strict=True)) if named else {}
    return tuple(int(text) if text.isdecimal() else found[text] for text in texts)


def called(node: Node) -> str:
    """What a node is called: as somebody said, or as it was found."""
    return node.given_label.text if node.given_label else node.label


def print_nodes(output: Output, nodes: Sequence[Node], info: CircuitInfo) -> None:
    """A table of nodes of a circuit."""
    columns = (
        *("INDEX", "NODE", "TOKEN", "INFLUENCE", "EFFECT"),
        *("ACTIVATION", "PIN", "GROUP", "CALLED", "PROMOTES"),
    )
    rows = (
        (
            str(node.index),
            address(node, info.set_names),
            token_at(node.position, info.tokens),
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
