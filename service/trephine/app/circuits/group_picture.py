"""A circuit drawn with groups as single nodes: how large it is, and what its own scores are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trephine.app.circuits.group_measures import ALONE, Floats, Indices, Partition
from trephine.app.circuits.pruning import edge_influence, numbers
from trephine.domain.circuits import Circuit, NodeKind
from trephine.domain.group_scores import PictureFigures

_STEPS = 10_000
_LITTLE = 1e-9
"""Path mass that is followed no further."""


def picture_figures(circuit: Circuit, partition: Partition | None = None) -> PictureFigures:
    """Count nodes and edges, and compute replacement and completeness over kept edges.

    Both scores are by circuit-tracer's definition, which leaves out errors at position 0 and what is no node.

    Edges between two nodes of the picture are one, with the path mass that is left where their signs differ;
    those inside a group are not drawn. Groups may feed each other in a circle, so that influence is a series.

    Args:
        circuit: The circuit.
        partition: Its groups; None: the circuit as it is.
    """
    size = len(circuit.nodes)
    column = np.arange(size) if partition is None else _columns(partition)
    width = int(column.max(initial=-1)) + 1
    edges = len(_edges(circuit, column, np.ones(circuit.edges.weight.shape[0], np.bool_))[2])
    replacement, completeness = None, None
    if circuit.across is None:
        kinds = np.array([node.kind.value for node in circuit.nodes])
        at_start = (kinds == NodeKind.ERROR.value) & np.array(
            [node.position == 0 for node in circuit.nodes], np.bool_
        )
        source, target, mass = _edges(circuit, column, ~at_start[numbers(circuit.edges.source)])
        error = _only(column, width, kinds == NodeKind.ERROR.value)
        token = _only(column, width, kinds == NodeKind.TOKEN.value)
        shares = np.zeros(size)
        shares[kinds == NodeKind.LOGIT.value] = [each.share for each in circuit.targets]
        start: Floats = np.bincount(column, weights=shares, minlength=width).astype(np.float64)
        entering = np.bincount(target, weights=mass, minlength=width)
        share = mass / np.maximum(entering[target], 1e-30)
        influence = _influence(source, target, share, start)
        if influence is not None and error.any():
            ends = float(influence[token].sum() + influence[error].sum())
            replacement = float(influence[token].sum()) / ends if ends > 0 else None
            weighted = influence + start
            unexplained = np.bincount(target, weights=share * error[source], minlength=width)
            completeness = float(((1 - unexplained) * weighted).sum() / weighted.sum())
    return PictureFigures(nodes=width, edges=edges, replacement=replacement, completeness=completeness)


def _columns(partition: Partition) -> Indices:
    """A number for every node of the picture `(n_nodes,)`: groups first, then what stands alone."""
    alone = partition.label == ALONE
    return np.where(alone, partition.count + np.cumsum(alone) - 1, partition.label)


def _edges(circuit: Circuit, column: Indices, counted: NDArray[np.bool_]) -> tuple[Indices, Indices, Floats]:
    """Source, target and net path mass of the picture's edges, of the circuit's that are counted."""
    signed = np.sign(numbers(circuit.edges.weight)) * edge_influence(circuit, counted)
    source, target = column[numbers(circuit.edges.source)], column[numbers(circuit.edges.target)]
    drawn = (source != target) & counted
    width = int(column.max(initial=-1)) + 1
    keys, place = np.unique(target[drawn] * width + source[drawn], return_inverse=True)
    net = np.abs(np.bincount(place, weights=signed[drawn], minlength=len(keys)))
    return keys % width, keys // width, net


def _only(column: Indices, width: int, of_kind: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which nodes of the picture `(width,)` are of one kind alone."""
    others = np.bincount(column, weights=~of_kind, minlength=width)
    found: NDArray[np.bool_] = others == 0
    return found


def _influence(source: Indices, target: Indices, share: Floats, start: Floats) -> Floats | None:
    """Path mass that each node sends to the targets; None if some circles for ever."""
    total, current = np.zeros(len(start)), start
    for _ in range(_STEPS):
        mass = current[target] * share
        current = np.bincount(source, weights=mass, minlength=len(start)).astype(np.float64)
        total += current
        if current.sum() < _LITTLE:
            return total
    return None
