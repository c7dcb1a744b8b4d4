"""What a grouping does to a circuit's edges: lumpability, agreement of signs, path mass that is shown.

Everything is in path mass: what an edge carries of the influence on the targets (Ameisen et al. 2025), the
influence of its target times its share of what enters there. Weights into different targets are in other
units and are not added up. Matrices are dense, so that some hundred partitions take seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trephine.app.circuits.pruning import edge_influence, numbers
from trephine.domain.circuits import Circuit, NodeKind
from trephine.domain.errors import UnsupportedOptionError
from trephine.domain.group_scores import MOST_SCORED, GroupQuality

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Matrix = NDArray[np.float32]

ALONE = -1
"""The group of a node that is in none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """Path mass between nodes, `(n_nodes, n_nodes)` each."""

    entering: Matrix
    """Rows are targets, columns sources; not negative."""
    signed_entering: Matrix
    """The same with the sign of each edge's weight."""
    leaving: Matrix
    """Rows are sources, columns targets."""
    signed_leaving: Matrix
    effect: Floats
    """`(n_nodes,)`, signed; 0 where it is not known, and of targets."""

    @classmethod
    def of(cls, circuit: Circuit) -> Flow:
        """Read a circuit's edges."""
        edges, size = circuit.edges, len(circuit.nodes)
        weight, source, target = (numbers(each) for each in (edges.weight, edges.source, edges.target))
        mass = edge_influence(circuit, np.ones(len(weight), np.bool_))
        entering = np.zeros((size, size), np.float32)
        signed = np.zeros((size, size), np.float32)
        np.add.at(entering, (target, source), mass)
        np.add.at(signed, (target, source), np.sign(weight) * mass)
        effect = [0.0 if node.kind is NodeKind.LOGIT else node.effect for node in circuit.nodes]
        return cls(
            entering=entering,
            signed_entering=signed,
            leaving=np.ascontiguousarray(entering.T),
            signed_leaving=np.ascontiguousarray(signed.T),
            effect=np.array(effect, np.float64),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """Groups of nodes; every other node stands alone."""

    label: Indices
    """`(n_nodes,)`, number of the group or `ALONE`; every group has a member."""
    count: int

    @property
    def members(self) -> Indices:
        """Nodes that are in a group, a group after the other."""
        grouped = np.flatnonzero(self.label != ALONE)
        return grouped[np.argsort(self.label[grouped], kind="stable")]


def partition_of(size: int, groups: Iterable[Sequence[int]]) -> Partition:
    """Return disjoint groups of nodes as a partition."""
    label, count = np.full(size, ALONE), 0
    for count, members in enumerate(groups, start=1):
        label[list(members)] = count - 1
    return Partition(label=label, count=count)


def require_scorable(circuit: Circuit) -> None:
    """Refuse a circuit whose matrices would not fit.

    Raises:
        UnsupportedOptionError: If it has too many nodes.
    """
    if len(circuit.nodes) > MOST_SCORED:
        raise UnsupportedOptionError(
            f"groups are scored in circuits of at most {MOST_SCORED} nodes, and this one has "
            f"{len(circuit.nodes)}: prune it, and group what is left",
            field="circuit",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Figures of one partition. NaN where there is nothing to tell."""

    groups: dict[GroupQuality, Floats]
    """Of every group `(count,)`; `SHOWN` is of the whole alone."""
    whole: dict[GroupQuality, float]
    inside: float
    cancelled: float


def measure(flow: Flow, partition: Partition) -> Measured:
    """Measure one partition."""
    members = partition.members
    label = partition.label[members]
    first = np.searchsorted(label, np.arange(partition.count))
    entering = _Rows(flow.entering[members], members, first)
    leaving = _Rows(flow.leaving[members], members, first)
    net_leaving = _net(_summed(flow.signed_leaving[members], first), members, first)
    net_entering = _Rows(flow.signed_entering[members], members, first).alone
    inside = float(np.diagonal(leaving.between).sum())
    gross = leaving.mass - np.diagonal(leaving.between)
    lost = float((gross - net_leaving).sum())
    lost += float(entering.alone.sum(dtype=np.float64) - np.abs(net_entering).sum(dtype=np.float64))
    total = max(float(flow.entering.sum(dtype=np.float64)), 1e-30)
    parts = {
        GroupQuality.SOURCES: (_deviation(entering, leaving, label, first), entering.mass),
        GroupQuality.GOALS: (_deviation(leaving, entering, label, first), leaving.mass),
        GroupQuality.EFFECT_SIGN: _leading(flow.effect[members], first),
        GroupQuality.EDGE_SIGN: ((gross + net_leaving) / 2, gross),
    }
    whole = {quality: _whole(*part) for quality, part in parts.items()}
    return Measured(
        groups={quality: _ratio(*part) for quality, part in parts.items()},
        whole=whole | {GroupQuality.SHOWN: 1.0 - (inside + lost) / total},
        inside=inside / total,
        cancelled=lost / total,
    )


class _Rows:
    """Path mass on one side of the members, by member and by group."""

    def __init__(self, rows: Matrix, members: Indices, first: Indices) -> None:
        self.rows = rows
        """`(n_members, n_nodes)`; 0 from here on where the column is a member."""
        summed = _summed(rows, first)
        self.of_members: Matrix = summed[:, members]
        """`(count, n_members)`, of each group with each member on its other side."""
        self.between: Floats = _summed(np.ascontiguousarray(self.of_members.T), first).T.astype(np.float64)
        """`(count, count)`."""
        self.mass: Floats = summed.sum(1, dtype=np.float64)
        """`(count,)`."""
        self.rows_mass: Floats = rows.sum(1, dtype=np.float64)
        """`(n_members,)`."""
        rows[:, members] = 0.0
        summed[:, members] = 0.0
        self.alone: Matrix = summed
        """`(count, n_nodes)`, of groups with nodes that stand alone."""


def _summed(rows: Matrix, first: Indices) -> Matrix:
    found: Matrix = np.add.reduceat(rows, first, axis=0)
    return found


def _net(summed: Matrix, members: Indices, first: Indices) -> Floats:
    """Return what is left of signed mass `(count, n_nodes)` outside groups, edge by edge, `(count,)`."""
    between = np.abs(_summed(np.ascontiguousarray(summed[:, members].T), first).T)
    np.fill_diagonal(between, 0.0)
    summed[:, members] = 0.0
    left: Floats = between.sum(1, dtype=np.float64) + np.abs(summed).sum(1, dtype=np.float64)
    return left


def _deviation(near: _Rows, far: _Rows, label: Indices, first: Indices) -> Floats:
    """Per group `(count,)`: sum over members of mass times L1 distance of their profile from the group's.

    A profile is the share of mass by group and single node; the group's is its members' mean by mass, which
    is what the picture says of each.

    Args:
        near: On the members' own side.
        far: On the other side, whose sums by group are the members' mass with each group.
        label: Of each member.
        first: Where each group's members begin.
    """
    scale = (near.rows_mass / np.maximum(near.mass, 1e-30)[label]).astype(np.float32)[:, None]
    between = near.between.astype(np.float32)
    distance = np.abs(far.of_members.T - scale * between[label]).sum(1, dtype=np.float64)
    distance += np.abs(near.rows - scale * near.alone[label]).sum(1, dtype=np.float64)
    deviations: Floats = np.add.reduceat(distance, first)
    return deviations


def _leading(value: Floats, first: Indices) -> tuple[Floats, Floats]:
    """Per group: the larger of what is above and what is below 0, and both together."""
    above = np.add.reduceat(np.maximum(value, 0), first)
    below = np.add.reduceat(np.maximum(-value, 0), first)
    return np.maximum(above, below), above + below


def _ratio(part: Floats, of: Floats) -> Floats:
    known = of > 0
    return np.where(known, part / np.where(known, of, 1.0), np.nan)


def _whole(part: Floats, of: Floats) -> float:
    total = float(of.sum())
    return float(part.sum()) / total if total > 0 else float("nan")
