"""The numbers of a circuit as named columns, apart from the rest: they are stored as safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from trephine.app.circuits.pruning import numbers
from trephine.domain.arrays import Array
from trephine.domain.circuits import Circuit, Edges, Rows

Column = NDArray[np.generic]

_EDGES = ("source", "target", "weight")
_ROWS = ("target", "total", "bias", "remainder")


def columns_of(circuit: Circuit) -> dict[str, Column]:
    """Return its edges and rows by name, each `(n,)`."""
    edges = {f"edges.{name}": numbers(getattr(circuit.edges, name)) for name in _EDGES}
    rows = {f"rows.{name}": numbers(getattr(circuit.rows, name)) for name in _ROWS}
    return {**edges, **rows}


def without_columns(circuit: Circuit) -> Circuit:
    """Return it with no edges and no rows."""
    nothing = Array(dtype="float32", shape=(0,), data=b"")
    edges = Edges(source=nothing, target=nothing, weight=nothing)
    rows = Rows(target=nothing, total=nothing, bias=nothing, remainder=nothing)
    return replace(circuit, edges=edges, rows=rows)


def with_columns(circuit: Circuit, columns: Mapping[str, Column]) -> Circuit:
    """Return it with what `columns_of` gave.

    Raises:
        KeyError: If a column is missing.
    """
    loaded = {name: array_of(column) for name, column in columns.items()}
    edges = Edges(**{name: loaded[f"edges.{name}"] for name in _EDGES})
    rows = Rows(**{name: loaded[f"rows.{name}"] for name in _ROWS})
    return replace(circuit, edges=edges, rows=rows)


def array_of(column: Column) -> Array:
    """Return a column as circuits hold it."""
    return Array(dtype=column.dtype.name, shape=column.shape, data=column.tobytes())  # type: ignore[arg-type]
