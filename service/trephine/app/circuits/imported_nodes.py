"""What a file of ours says of its nodes beyond the schema: effects, what enters them, promoted tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import nan
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from trephine.app.circuits.circuit_columns import array_of
from trephine.app.circuits.pruning import numbers
from trephine.domain.circuits import Edges, Node, Rows
from trephine.domain.errors import InvalidRequestError

LARGEST = float(np.finfo(np.float32).max)
"""Figures are stored as float32: a larger one would be infinite, and so would be what follows from it."""
Figure = Annotated[float, Field(ge=-LARGEST, le=LARGEST, allow_inf_nan=False)]


class _Told(BaseModel):
    """A node as `pages.circuit_figures` writes it, but for what follows from its edges."""

    effect: Figure = nan
    total: Figure | None = None
    bias: Figure = nan
    promotes: tuple[str, ...] = ()
    suppresses: tuple[str, ...] = ()
    no_position: bool = False
    """Of many contexts: the schema's own position says only where to draw it."""


_NODES = TypeAdapter(dict[str, _Told])


def with_told(
    nodes: Sequence[Node], ids: Sequence[str], edges: Edges, told: Mapping[str, Any]
) -> tuple[tuple[Node, ...], Rows]:
    """Return nodes with what the file says of them, and the rows of those that something enters.

    What edges do not carry is in the remainder, of a file from which somebody took nodes or links, too.

    Args:
        nodes: Of the graph.
        ids: Theirs in the file, in their order. What is said of others is of nodes that are gone.
        edges: Of the graph.
        told: What a file of ours says in `metadata.info`; nothing of another's.

    Raises:
        InvalidRequestError: If what it says is no such thing.
    """
    try:
        found = _NODES.validate_python(told.get("nodes") or {})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidRequestError(
            f"the file's metadata.info.nodes does not say what was measured of its nodes: {where}: "
            f"{first['msg']}",
            field="artifact",
        ) from error
    said = [found.get(one, _NOTHING) for one in ids]
    rows = [place for place, one in enumerate(said) if one.total is not None]
    total, bias = (
        np.array([getattr(said[place], name) for place in rows], np.float64) for name in ("total", "bias")
    )
    carried = np.bincount(numbers(edges.target), weights=numbers(edges.weight), minlength=len(nodes))[rows]
    return tuple(map(_with, nodes, said)), Rows(
        target=array_of(np.asarray(rows, "<i4")),
        total=array_of(total.astype("<f4")),
        bias=array_of(bias.astype("<f4")),
        remainder=array_of((total - bias - carried).astype("<f4")),
    )


_NOTHING = _Told()


def _with(node: Node, told: _Told) -> Node:
    return replace(
        node,
        position=-1 if told.no_position else node.position,
        effect=told.effect,
        promotes=told.promotes,
        suppresses=told.suppresses,
    )
