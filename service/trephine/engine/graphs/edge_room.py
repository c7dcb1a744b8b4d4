"""How many edges the rows of a growing graph may store, so that all of them fit."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trephine.domain.sweeps import LENDING_PAIRS, STORED_EDGES, WHOLE_EDGES, WHOLE_EDGES_ON_GPU
from trephine.engine.models.memory import free_bytes

_EDGE_BYTES = 8
_FREE_SHARE = 2
"""One in so many bytes that a GPU has free may be edges; sweeps need the others."""


class EdgeRoom:
    """What is left for the rows that are still to come.

    Every row is sure of an equal share, however much the others took. What is allowed beyond shares, and
    what rows leave of them, is for whoever comes first: most rows need little. Without lending each row has
    its share and no more.

    Args:
        rows: That will be stored, at most.
        edges: That a graph may store.
        shared: Of these, what is shared out equally.
        lends: Whether a row may have more than its share.
    """

    def __init__(self, *, rows: int, edges: int, shared: int, lends: bool = True) -> None:
        self._rows, self._left, self._lends = rows, edges, lends
        self._share = max(1, min(shared, edges) // max(1, rows))

    def grant(self, wanted: Sequence[int]) -> list[int]:
        """Return how many edges the next rows store of those that they want.

        Where these do not fit, the longest are cut to one length.
        """
        if not self._lends:
            return [min(count, self._share) for count in wanted]
        self._rows -= len(wanted)
        later = max(0, self._rows) * self._share
        level = _level(wanted, max(len(wanted) * self._share, self._left - later))
        granted = [min(count, level) for count in wanted]
        self._left -= sum(granted)
        return granted


def edge_room(rows: int, cells: int, device: torch.device) -> EdgeRoom:
    """Return the room of a graph of so many rows over so many active features.

    Args:
        rows: Targets and features that will be expanded.
        cells: Active features of the prompt. Of a long prompt there are so many that the sweep itself takes
            what is beyond the shares.
        device: Where rows are kept until the graph is grown.
    """
    edges = WHOLE_EDGES
    if device.type == "cuda":
        edges = min(WHOLE_EDGES_ON_GPU, free_bytes(device) // (_FREE_SHARE * _EDGE_BYTES))
    return EdgeRoom(rows=rows, edges=edges, shared=STORED_EDGES, lends=rows * cells <= LENDING_PAIRS)


def _level(wanted: Sequence[int], room: int) -> int:
    """Return the largest length to which rows can be cut so that they fit."""
    rows = len(wanted)
    for count in sorted(wanted):
        if count * rows > room:
            return room // rows
        room, rows = room - count, rows - 1
    return max(wanted, default=0)
