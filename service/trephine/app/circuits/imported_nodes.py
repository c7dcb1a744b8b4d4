"""What a file of ours says of its nodes beyond the schema: effects, what enters them, promoted tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import nan
from typing import Any

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from trephine.domain.arrays import Array
from trephine.domain.circuits import Node, Rows
from trephine.domain.errors import InvalidRequestError


class _Told(BaseModel):
    """A node as `pages.circuit_figures` writes it."""

    effect: float = Field(default=nan, allow_inf_nan=False)
    total: float | None = Field(default=None, allow_inf_nan=False)
    bias: float = Field(default=nan, allow_inf_nan=False)
    remainder: float = Field(default=nan, allow_inf_nan=False)
    promotes: tuple[str, ...] = ()
    suppresses: tuple[str, ...] = ()


_NODES = TypeAdapter(dict[str, _Told])


def with_told(
    nodes: Sequence[Node], ids: Sequence[str], told: Mapping[str, Any]
) -> tuple[tuple[Node, ...], Rows]:
    """Return nodes with what the file says of them, and the rows of those that something enters.

    Args:
        nodes: Of the graph.
        ids: Theirs in the file, in their order.
        told: What a file of ours says in `metadata.info`; nothing of another's.

    Raises:
        InvalidRequestError: If what it says is no such thing, or of a node that is not there.
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
    strangers = found.keys() - set(ids)
    if strangers:
        raise InvalidRequestError(
            f"the file's metadata.info.nodes tells of {min(strangers)!r}, which is none of its nodes",
            field="artifact",
        )
    said = [found.get(one, _NOTHING) for one in ids]
    rows = [place for place, one in enumerate(said) if one.total is not None]
    return tuple(map(_with, nodes, said)), Rows(
        target=_column(rows, "<i4"),
        total=_column([said[place].total for place in rows], "<f4"),
        bias=_column([said[place].bias for place in rows], "<f4"),
        remainder=_column([said[place].remainder for place in rows], "<f4"),
    )


_NOTHING = _Told()


def _with(node: Node, told: _Told) -> Node:
    return replace(node, effect=told.effect, promotes=told.promotes, suppresses=told.suppresses)


def _column(values: Sequence[float | None], kind: str) -> Array:
    column = np.asarray(values, kind)
    return Array(dtype=column.dtype.name, shape=column.shape, data=column.tobytes())  # type: ignore[arg-type]
