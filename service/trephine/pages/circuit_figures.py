"""What a circuit knows of its nodes beyond the schema of other tools, for files and pages alike."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import isfinite, nan
from typing import Any, NamedTuple

from trephine.domain.circuits import Circuit, PrunedNodes
from trephine.pages.embed import printable


class Entering(NamedTuple):
    """What enters a target row: all of it, and what no shown edge carries."""

    total: float
    bias: float
    remainder: float


UNKNOWN = Entering(nan, nan, nan)
"""Of nodes that nothing enters."""


def entering_rows(circuit: Circuit, kept: PrunedNodes) -> dict[int, Entering]:
    """Return what enters every target row, by node index.

    What edges carry that are not shown is in the remainder, as in circuits that were pruned: rows still sum.
    """
    columns = [
        array("f", column.data) for column in (circuit.rows.total, circuit.rows.bias, circuit.rows.remainder)
    ]
    lost = dict.fromkeys(array("i", circuit.rows.target.data), 0.0)
    shown = bytearray(circuit.edges.source.shape[0])
    for edge in kept.edges:
        shown[edge] = 1
    for target, weight, stays in zip(
        array("i", circuit.edges.target.data), array("f", circuit.edges.weight.data), shown, strict=True
    ):
        if not stays and target in lost:
            lost[target] += weight
    return {
        target: Entering(total, bias, remainder + gone)
        for (target, gone), total, bias, remainder in zip(lost.items(), *columns, strict=True)
    }


def told_nodes(circuit: Circuit, kept: PrunedNodes, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return figures and promoted tokens of the nodes that are kept, by id; what is not known is absent.

    `influence` is the node's own share, where the schema's attribute of that name is cumulative.
    `no_position` is true of nodes of many contexts, which lie at no single one: their `ctx_idx` is where to
    draw them.
    """
    rows = entering_rows(circuit, kept)
    return {ids[index]: _told(circuit, index, rows.get(index, UNKNOWN)) for index in kept.nodes}


def _told(circuit: Circuit, index: int, entering: Entering) -> dict[str, Any]:
    node = circuit.nodes[index]
    figures = {"effect": node.effect, "influence": node.influence, **entering._asdict()}
    texts = {"promotes": node.promotes, "suppresses": node.suppresses}
    return {
        **({"no_position": True} if node.position < 0 else {}),
        **{name: value for name, value in figures.items() if isfinite(value)},
        **{name: [printable(one) for one in found] for name, found in texts.items() if found},
    }
