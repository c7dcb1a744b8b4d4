"""Where an error node's error is.

A layer has one node per site and position: its MLP's, whether a set covers it or not, and one for each other
place that a dictionary of the set reconstructs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from trephine.domain.circuits import Node, NodeKind
from trephine.domain.sites import SiteKind

ERROR_SITES: Final = (
    SiteKind.MLP_OUT,
    SiteKind.ATTN_OUT,
    SiteKind.RESID_POST,
    SiteKind.RESID_MID,
    SiteKind.RESID_PRE,
    SiteKind.EMBED,
    SiteKind.MLP_IN,
    SiteKind.ATTN_Z,
    SiteKind.NEURONS,
)
"""An error node's `feature` is -1 for the first of these, -2 for the second, and so on. The number is part of
ids and of stored circuits: places are added at the end, and never moved. The MLP's output is the first, since
-1 is what circuit-tracer calls the error of an MLP.
"""

_LABEL = re.compile(r"error of (?P<kind>[a-z_]+) (?P<layer>\d+) at ")


def error_number(kind: SiteKind) -> int:
    """Return the `feature` of error nodes at a kind of site."""
    return -1 - ERROR_SITES.index(kind)


def error_site(node: Node) -> SiteKind | None:
    """Return where a node's error is; None for what is no error node, and numbers that are not known."""
    place = -1 - node.feature
    known = node.kind is NodeKind.ERROR and 0 <= place < len(ERROR_SITES)
    return ERROR_SITES[place] if known else None


def numbered(nodes: Iterable[Node]) -> tuple[Node, ...]:
    """Number error nodes of circuits that were stored when all had -1; labels say where the error is."""
    known = tuple(nodes)
    taken = {_address(node) for node in known if node.kind is NodeKind.ERROR}
    return tuple(
        found if (found := _by_label(node)) is not node and _address(found) not in taken else node
        for node in known
    )


def _by_label(node: Node) -> Node:
    said = _LABEL.match(node.label) if node.kind is NodeKind.ERROR and node.feature == -1 else None
    if said is None or said["kind"] not in set(ERROR_SITES) or int(said["layer"]) != node.layer:
        return node
    number = error_number(SiteKind(said["kind"]))
    return node if number == -1 else replace(node, feature=number)


def _address(node: Node) -> tuple[int, int, int]:
    return node.layer, node.position, node.feature
