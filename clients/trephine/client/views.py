"""Small tables for notebooks. Everything that came from a model or a person is escaped."""

from __future__ import annotations

import html
from collections.abc import Sequence

from trephine.client.node_addresses import placed
from trephine.client.types import CircuitInfo, Node


def circuit_html(info: CircuitInfo, nodes: Sequence[Node]) -> str:
    """The circuit's head figures, and a table of nodes if there are any."""
    explained = (
        f"<code>{html.escape(info.target_label)}</code> after <code>{html.escape(info.prompt)}</code>: "
        f"{info.baseline:.3f} logits"
    )
    if info.across is not None:
        explained = f"global, over {info.across.training} texts"
    head = (
        f"<p><b>{html.escape(info.name)}</b>: {explained}, {info.n_nodes} nodes, "
        f"{info.n_edges} edges ({html.escape(info.edge_rule)})</p>"
    )
    columns = "<tr><th>feature</th><th>position</th><th>influence</th><th>effect</th><th>promotes</th></tr>"
    if not nodes:
        return head
    return f"{head}<table>{columns}{''.join(_row(node) for node in nodes)}</table>"


def _row(node: Node) -> str:
    promotes = ", ".join(html.escape(token) for token in node.promotes[:5])
    return (
        f"<tr><td>{node.feature}</td><td>{placed(node)}</td><td>{node.influence:.4f}</td>"
        f"<td>{node.effect:+.3f}</td><td>{promotes}</td></tr>"
    )
